package logs

import (
	"bufio"
	"bytes"
	"os"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// lineWriter turns entries into lines.
type lineWriter struct {
	w      *bufio.Writer
	stamps bool
	since  time.Time
	open   string // the stream of an unfinished line
}

func newLineWriter(w *os.File, o pod.LogOptions) *lineWriter {
	return &lineWriter{w: bufio.NewWriterSize(w, 32<<10), stamps: o.Timestamps, since: o.Since}
}

// entry writes one line, or a part of one: partial says that more of it follows. stamp is text of
// the form of [shim.CRITime]. A line of another stream that comes between ends the unfinished one.
func (o *lineWriter) entry(stream string, stamp, text []byte, partial bool) error {
	if o.open != "" && o.open != stream {
		o.open = ""
		o.w.WriteByte('\n')
	}
	if o.open == "" && o.stamps {
		o.w.Write(stamp)
		o.w.WriteByte(' ')
	}
	_, err := o.w.Write(text) // an error stays: the last call returns it
	o.open = ""
	if partial {
		o.open = stream
	} else {
		err = o.w.WriteByte('\n')
	}
	return err
}

// text writes a line of magikpod's own.
func (o *lineWriter) text(line string) {
	_ = o.entry("magikpod", time.Now().UTC().AppendFormat(nil, shim.CRITime), []byte("magikpod: "+line), false)
}

func (o *lineWriter) flush() error { return o.w.Flush() }

// finish ends an unfinished line.
func (o *lineWriter) finish() error {
	if o.open != "" {
		o.open = ""
		o.w.WriteByte('\n')
	}
	return o.flush()
}

// parseLine reads TIME STREAM TAGS TEXT.
func parseLine(line []byte) (stamp []byte, stream string, partial bool, text []byte, ok bool) {
	stamp, rest, ok1 := bytes.Cut(line, []byte{' '})
	kind, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tags, text, ok3 := bytes.Cut(rest, []byte{' '})
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	partial = string(tag) == shim.CRIPartial
	switch {
	case !ok1 || !ok2 || !ok3 || len(stamp) == 0 || !partial && string(tag) != shim.CRIFull:
		return nil, "", false, nil, false
	case string(kind) == shim.Stdout:
		stream = shim.Stdout
	case string(kind) == shim.Stderr:
		stream = shim.Stderr
	default:
		return nil, "", false, nil, false
	}
	return stamp, stream, partial, text, true
}
