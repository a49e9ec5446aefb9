package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/magikrun/magikpod/internal/firstbytes"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

const (
	// syncTime bounds the wait for the journal to take in what was sent to it.
	syncTime = 5 * time.Second
	// maxJournalField bounds a field of an entry, in bytes: the relay splits longer messages.
	maxJournalField = 4 << 20
)

// copyJournal writes the lines that journalctl, the program, gives: it knows the journal's files,
// their compression and their rotation.
func copyJournal(ctx context.Context, program string, q Request, out *lineWriter, over context.Context) error {
	c := &journalCopy{program: program, q: q, out: out}
	if q.Options.Tail == 0 { // what comes from now on
		if over == nil {
			return nil
		}
		c.q.Options.Tail = -1
		if now := time.Now(); now.After(q.Options.Since) {
			c.q.Options.Since, out.since = now, now
		}
	}
	switch {
	case over != nil:
		if err := c.follow(ctx, over); err != nil {
			return err
		}
		c.sync(ctx)
	case !q.Ended.IsZero() && time.Since(q.Ended) < fresh:
		c.sync(ctx)
	}
	return errors.Join(c.run(ctx, false), out.finish())
}

// journalCopy is the copying of one attempt's lines, in one or more runs of journalctl.
type journalCopy struct {
	program string
	q       Request
	out     *lineWriter
	cursor  string // of the last entry
}

// follow copies lines until over ends. journalctl --follow never does so by itself, so it is
// stopped: some of the last lines may be missing.
func (c *journalCopy) follow(ctx, over context.Context) error {
	following, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(over, cancel)()
	err := c.run(following, true)
	ended := following.Err() != nil
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && !ended:
		return err
	case c.out.flush() != nil:
		return c.out.flush() // nobody reads
	case !ended:
		return pod.Errorf(pod.Unavailable, "cannot follow the log: journalctl has ended")
	}
	return nil
}

// sync waits until the journal has taken in what was sent to it before. It is an improvement only:
// without it some last lines may be missing.
func (c *journalCopy) sync(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	_ = c.command(ctx, "--sync").Run()
}

func (c *journalCopy) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.WaitDelay = 2 * time.Second
	cmd.Env = []string{"LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

// args is the command line. Only the relay's lines are wanted, which is root's: anybody can send
// entries with these fields to the journal.
func (c *journalCopy) args(follow bool) []string {
	o := c.q.Options
	args := []string{"--quiet", "--no-pager", "--system", "--output=export",
		"--output-fields=MESSAGE," + shim.FieldStream + "," + shim.FieldPartial}
	if follow {
		args = append(args, "--follow")
	}
	switch {
	case c.cursor != "":
		args = append(args, "--after-cursor="+c.cursor)
	case !o.Since.IsZero():
		args = append(args, fmt.Sprintf("--since=@%d.%06d", o.Since.Unix(), o.Since.Nanosecond()/1000))
	}
	if o.Tail < 0 || c.cursor != "" {
		args = append(args, "--lines=all")
	} else {
		args = append(args, "--lines="+strconv.Itoa(o.Tail))
	}
	return append(args, "_UID=0", shim.FieldPodUID+"="+c.q.PodUID, shim.FieldContainer+"="+c.q.Container,
		shim.FieldAttempt+"="+strconv.Itoa(c.q.Attempt), shim.FieldStream+"="+shim.Stdout, shim.FieldStream+"="+shim.Stderr)
}

// run copies what one run of journalctl gives.
func (c *journalCopy) run(ctx context.Context, follow bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := c.command(ctx, c.args(follow)...)
	complaint := &firstbytes.Writer{Max: 4096}
	cmd.Stderr = complaint
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot read the journal: %w", err)
	}
	readErr := c.read(bufio.NewReaderSize(pipe, 64<<10))
	if readErr != nil {
		cancel() // nobody reads any more, or it is not to be understood
	}
	err = cmd.Wait()
	switch {
	case readErr != nil:
		return readErr
	case err != nil && ctx.Err() == nil:
		text := strings.TrimSpace(complaint.String())
		if text == "" {
			text = err.Error()
		}
		return pod.Errorf(pod.Unavailable, "cannot read the journal: journalctl: %s", text)
	}
	return nil
}

// read copies entries until the end.
func (c *journalCopy) read(r *bufio.Reader) error {
	for {
		e, err := readJournalEntry(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at := time.UnixMicro(e.micros).UTC()
		if e.stream != "" && !at.Before(c.out.since) {
			var stamp [len(shim.CRITime)]byte
			if err := c.out.entry(e.stream, at.AppendFormat(stamp[:0], shim.CRITime), e.message, e.partial); err != nil {
				return err
			}
		}
		c.cursor = e.cursor
		if r.Buffered() == 0 {
			if err := c.out.flush(); err != nil {
				return err
			}
		}
	}
}

// journalEntry is what is wanted of an entry.
type journalEntry struct {
	cursor  string
	micros  int64 // since 1970
	stream  string
	message []byte
	partial bool
}

// readJournalEntry reads one entry of the Journal Export Format
// (systemd.io/JOURNAL_EXPORT_FORMATS): KEY=VALUE lines, or KEY, a length of 8 bytes, little endian,
// and the value; an empty line ends the entry. io.EOF: there are no more; an entry that is cut off
// counts as none.
func readJournalEntry(r *bufio.Reader) (journalEntry, error) {
	var e journalEntry
	for {
		key, value, err := readJournalField(r)
		if err != nil {
			return e, err
		}
		switch key {
		case "":
			if e.cursor != "" {
				return e, nil
			}
		case "__CURSOR":
			e.cursor = string(value)
		case "__REALTIME_TIMESTAMP":
			if e.micros, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return e, pod.Errorf(pod.Internal, "cannot read the journal: a time-stamp is %q", value)
			}
		case shim.FieldStream:
			e.stream = string(value)
		case shim.FieldPartial:
			e.partial = string(value) == "true"
		case "MESSAGE":
			e.message = value
		}
	}
}

// readJournalField reads one field; an empty key is the end of the entry.
func readJournalField(r *bufio.Reader) (key string, value []byte, err error) {
	line, err := readJournalLine(r)
	if err != nil || len(line) == 0 {
		return "", nil, err
	}
	if name, text, ok := bytes.Cut(line, []byte{'='}); ok {
		return string(name), text, nil
	}
	var size uint64
	for shift := 0; shift < 64; shift += 8 {
		b, err := r.ReadByte()
		if err != nil {
			return "", nil, err
		}
		size |= uint64(b) << shift
	}
	if size > maxJournalField {
		return "", nil, pod.Errorf(pod.Internal, "cannot read the journal: a field has %d bytes", size)
	}
	value = make([]byte, size+1)
	if _, err := io.ReadFull(r, value); err != nil {
		return "", nil, io.EOF
	}
	if value[size] != '\n' {
		return "", nil, pod.Errorf(pod.Internal, "cannot read the journal: a field does not end where it should")
	}
	return string(line), value[:size], nil
}

// readJournalLine reads a line without its newline.
func readJournalLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxJournalField:
			return nil, pod.Errorf(pod.Internal, "cannot read the journal: a field has more than %d bytes", maxJournalField)
		case err == nil:
			return line[:len(line)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
