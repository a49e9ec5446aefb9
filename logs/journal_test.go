package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/pod"
)

// journalScript is a journalctl that serves the files entries.NNN of its directory, whose cursors
// are their numbers. It writes its command lines to calls, and holds back the newest entry until
// --sync was called when there is a file held.
const journalScript = `#!/bin/sh
cd "$(dirname "$0")" || exit 9
echo "$*" >>calls
if [ -e fail ]; then echo "Journal file is corrupt" >&2; exit 1; fi
follow= after=-1
for a in "$@"; do
	case "$a" in
	--sync) for f in held.*; do [ -e "$f" ] && mv "$f" "entry.${f#held.}"; done; exit 0 ;;
	--follow) follow=1 ;;
	--after-cursor=*) after=${a#--after-cursor=} ;;
	esac
done
next=$((after+1))
while :; do
	while [ -e entry.$next ]; do cat entry.$next || exit 1; next=$((next+1)); done
	[ -n "$follow" ] || exit 0
	if [ -e die ]; then exit 0; fi
	sleep 0.02
done
`

type journalHost struct {
	*reading
	dir   string
	count int
}

func newJournalHost(t *testing.T) *journalHost {
	h := &journalHost{reading: newReading(t), dir: t.TempDir()}
	program := filepath.Join(h.dir, "journalctl")
	if err := os.WriteFile(program, []byte(journalScript), 0o755); err != nil {
		t.Fatal(err)
	}
	h.r.journalctl, h.q.LogDir = program, ""
	return h
}

// add puts entries of the form of reading.write into the journal; held: they are only there after a
// sync.
func (h *journalHost) add(name string, entries ...string) {
	h.t.Helper()
	for _, e := range entries {
		stream := map[byte]string{'o': "stdout", 'e': "stderr"}[e[0]|0x20]
		var b bytes.Buffer
		fmt.Fprintf(&b, "__CURSOR=%d\n__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=1\nMAGIKPOD_STREAM=%s\n", h.count, h.now.UnixMicro(), stream)
		if e[0] < 'a' {
			b.WriteString("CONTAINER_PARTIAL_MESSAGE=true\n")
		}
		if strings.Contains(e, "\x00") {
			b.WriteString("MESSAGE\n")
			b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(e)-2)))
			b.WriteString(e[2:] + "\n\n")
		} else {
			b.WriteString("MESSAGE=" + e[2:] + "\n\n")
		}
		path := filepath.Join(h.dir, fmt.Sprintf("%s.%d", name, h.count))
		if err := os.WriteFile(path+".new", b.Bytes(), 0o600); err != nil {
			h.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			h.t.Fatal(err)
		}
		h.count++
		h.now = h.now.Add(time.Second)
	}
}

func (h *journalHost) calls() []string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	os.Remove(filepath.Join(h.dir, "calls"))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

const journalMatches = " _UID=0 MAGIKPOD_POD_UID=u1 MAGIKPOD_CONTAINER=app MAGIKPOD_RESTART=0 MAGIKPOD_STREAM=stdout MAGIKPOD_STREAM=stderr"
const journalArgs = "--quiet --no-pager --system --output=export --output-fields=MESSAGE,MAGIKPOD_STREAM,CONTAINER_PARTIAL_MESSAGE"

func TestLogJournal(t *testing.T) {
	tests := []struct {
		name    string
		options pod.LogOptions
		ended   time.Duration // ago; 0: it runs
		calls   []string
	}{
		{"all", pod.LogOptions{Tail: -1}, 0, []string{journalArgs + " --lines=all" + journalMatches}},
		{"tail", pod.LogOptions{Tail: 5}, time.Hour, []string{journalArgs + " --lines=5" + journalMatches}},
		{"since", pod.LogOptions{Tail: -1, Since: time.Unix(1700000000, 123456789)}, 0,
			[]string{journalArgs + " --since=@1700000000.123456 --lines=all" + journalMatches}},
		{"has just ended", pod.LogOptions{Tail: -1}, time.Second, []string{"--sync", journalArgs + " --lines=all" + journalMatches}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newJournalHost(t)
			h.add("entry", "o one", "e two", "O long", "O er", "o  line", "o ", "o b\x00\xffn\nx", "O part")
			h.q.Options = tt.options
			if tt.ended > 0 {
				h.q.Ended = time.Now().Add(-tt.ended)
			}
			h.want("one\ntwo\nlonger line\n\nb\x00\xffn\nx\npart\n")
			if diff := cmp.Diff(tt.calls, h.calls()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("tail 0", func(t *testing.T) {
		h := newJournalHost(t)
		h.add("entry", "o one")
		h.q.Options.Tail = 0
		h.want("")
	})
	t.Run("stamps and exact since", func(t *testing.T) {
		h := newJournalHost(t)
		h.add("entry", "o one", "e two")
		h.q.Options = pod.LogOptions{Tail: -1, Timestamps: true, Since: time.Date(2026, 1, 2, 3, 4, 5, 1, time.UTC)}
		h.want("2026-01-02T03:04:06.000000000Z two\n")
	})
}

func TestLogJournalErrors(t *testing.T) {
	h := newJournalHost(t)
	if err := os.WriteFile(filepath.Join(h.dir, "fail"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.want("magikpod: cannot read the journal: journalctl: Journal file is corrupt\n")
	h.q.Quiet = true
	h.want("")
	h = newJournalHost(t)
	h.r.journalctl = filepath.Join(h.dir, "missing")
	if got := h.all(); !strings.HasPrefix(got, "magikpod: cannot read the journal: fork/exec ") {
		t.Errorf("log %q", got)
	}
}

func TestLogJournalFollow(t *testing.T) {
	h := newJournalHost(t)
	first, second := make(life), make(life)
	h.q.Wait = first.wait
	h.add("entry", "o 1", "o 2")
	f := h.follow(t.Context())
	f.want("1", "2")
	h.add("entry", "e 3")
	f.want("3")
	h.add("held", "o 4", "o 5") // only a sync brings these
	close(first)
	f.want("4", "5")
	f.wantEnd()
	h.q.Wait, h.q.Attempt = second.wait, 1
	f = h.follow(t.Context())
	// The script shows the entries of the first attempt again: it knows nothing of matches.
	f.want("1", "2", "3", "4", "5")
	close(second)
	f.wantEnd()
	restarted := strings.ReplaceAll(journalMatches, "RESTART=0", "RESTART=1")
	want := []string{journalArgs + " --follow --lines=all" + journalMatches, "--sync", journalArgs + " --after-cursor=2 --lines=all" + journalMatches,
		journalArgs + " --follow --lines=all" + restarted, "--sync", journalArgs + " --after-cursor=4 --lines=all" + restarted}
	if diff := cmp.Diff(want, h.calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// With a tail of nothing, the new lines are those from now on.
func TestLogJournalFollowNew(t *testing.T) {
	h := newJournalHost(t)
	life := make(life)
	h.q.Wait, h.q.Options.Tail = life.wait, 0
	h.now = time.Now().Add(-time.Hour)
	h.add("entry", "o old")
	f := h.follow(t.Context())
	h.now = time.Now().Add(time.Minute)
	h.add("entry", "o new")
	f.want("new")
	close(life)
	f.wantEnd()
	if calls := h.calls(); !strings.Contains(calls[0], " --since=@") || strings.Contains(calls[0], "--lines=0") {
		t.Errorf("calls: %q", calls)
	}
}

// Whatever ends the reading, journalctl ends too.
func TestLogJournalFollowEnds(t *testing.T) {
	ends := map[string]func(h *journalHost, f *follower, cancel func()){
		"reader":  func(_ *journalHost, f *follower, _ func()) { f.f.Close() },
		"context": func(_ *journalHost, f *follower, cancel func()) { cancel(); f.wantEnd() },
		"close":   func(h *journalHost, f *follower, _ func()) { h.r.Close(); f.wantEnd() },
		"journalctl": func(h *journalHost, f *follower, _ func()) {
			if err := os.WriteFile(filepath.Join(h.dir, "die"), nil, 0o600); err != nil {
				h.t.Fatal(err)
			}
			f.want("magikpod: cannot follow the log: journalctl has ended")
			f.wantEnd()
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			h := newJournalHost(t)
			h.q.Wait = make(life).wait
			h.add("entry", "o 1")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f := h.follow(ctx)
			f.want("1")
			end(h, f, cancel)
			h.r.wg.Wait()
		})
	}
}

func TestReadJournalEntry(t *testing.T) {
	good := "__CURSOR=a\n__REALTIME_TIMESTAMP=5\nMAGIKPOD_STREAM=stdout\nMESSAGE=x\n\n"
	tests := []struct {
		name, text string
		want       string // messages
		fails      bool
	}{
		{"one", good, "x", false},
		{"empty lines between", "\n\n" + good + "\n\n" + good, "x x", false},
		{"cut off in a field", good + "__CURSOR=b\nMESS", "x", false},
		{"cut off in a length", good + "__CURSOR=b\nMESSAGE\n\x05\x00", "x", false},
		{"cut off in a value", good + "__CURSOR=b\nMESSAGE\n\x05\x00\x00\x00\x00\x00\x00\x00abc", "x", false},
		{"cut off before the end", good + good[:len(good)-1], "x", false},
		{"a long value", good + "MESSAGE\n\x00\x00\x00\x00\x01\x00\x00\x00", "x", true},
		{"a value without end", "MESSAGE\n\x01\x00\x00\x00\x00\x00\x00\x00abc\n", "", true},
		{"no number", "__REALTIME_TIMESTAMP=x\n", "", true},
		{"a long line", "MESSAGE=" + strings.Repeat("x", maxJournalField+1), "", true},
		{"a line of more than the buffer", "__CURSOR=a\nMESSAGE=" + strings.Repeat("x", 100000) + "\n\n", strings.Repeat("x", 100000), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := bufio.NewReaderSize(strings.NewReader(tt.text), 4096)
			var got []string
			var err error
			for err == nil {
				var e journalEntry
				if e, err = readJournalEntry(r); err == nil {
					got = append(got, string(e.message))
				}
			}
			if strings.Join(got, " ") != tt.want || (err != io.EOF) != tt.fails {
				t.Errorf("messages %.100q, error %v", got, err)
			}
		})
	}
}

func FuzzReadJournalEntry(f *testing.F) {
	f.Add([]byte("__CURSOR=a\n__REALTIME_TIMESTAMP=5\nMAGIKPOD_STREAM=stdout\nMESSAGE=x\n\n"))
	f.Add([]byte("__CURSOR=a\nMESSAGE\n\x03\x00\x00\x00\x00\x00\x00\x00a\nb\n\n"))
	f.Add([]byte("MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), 64)
		for range len(data) + 1 {
			e, err := readJournalEntry(r)
			if err != nil {
				return
			}
			if e.cursor == "" || len(e.message) > len(data) {
				t.Fatalf("entry %+v", e)
			}
		}
		t.Fatal("more entries than bytes")
	})
}

func FuzzParseLogLine(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.000000000Z stdout F hello"))
	f.Add([]byte("2026-01-02T03:04:05Z stderr P:tag "))
	f.Add([]byte(" stdout F x"))
	f.Fuzz(func(t *testing.T, line []byte) {
		stamp, stream, partial, text, ok := parseLine(line)
		if !ok {
			return
		}
		tag := "F"
		if partial {
			tag = "P"
		}
		if !bytes.HasPrefix(line, []byte(string(stamp)+" "+stream+" "+tag)) || !bytes.HasSuffix(line, append([]byte(" "), text...)) {
			t.Fatalf("%q is read as %q %q %v %q", line, stamp, stream, partial, text)
		}
	})
}
