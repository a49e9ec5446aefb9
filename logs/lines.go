package logs

import (
	"bufio"
	"bytes"
	"os"
	"time"

	"github.com/magikrun/magikpod/pod"
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

// entry writes one line, or a part of one: partial says that more of it follows. stamp is text of the form of logStampFormat. A line of another stream
// that comes between ends the unfinished one.
func (o *lineWriter) entry(stream string, stamp, text []byte, partial bool) error {
	if o.open != "" && o.open != stream {
		o.open = ""
		o.w.WriteByte('\n')
	}
	if o.open == "" && o.stamps {
		o.w.Write(stamp)
		o.w.WriteByte(' ')
	}
	_, err := o.w.Write(text) // an error stays: the last one tells
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
	_ = o.entry("magikpod", time.Now().UTC().AppendFormat(nil, logStampFormat), []byte("magikpod: "+line), false)
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
	switch {
	case !ok1 || !ok2 || !ok3 || len(stamp) == 0:
		return nil, "", false, nil, false
	case string(kind) == "stdout":
		stream = "stdout"
	case string(kind) == "stderr":
		stream = "stderr"
	default:
		return nil, "", false, nil, false
	}
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	if t := string(tag); t != "P" && t != "F" {
		return nil, "", false, nil, false
	}
	return stamp, stream, tag[0] == 'P', text, true
}
