package logs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// reading is a pod's log directory and a reader of it.
type reading struct {
	t   *testing.T
	dir string // of the container
	r   *Reader
	q   Request
	now time.Time
}

func newReading(t *testing.T) *reading {
	h := &reading{t: t, r: NewReader(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	t.Cleanup(h.r.Close)
	h.q = Request{LogDir: t.TempDir(), FIFODir: t.TempDir(), PodUID: "u1", Container: "app", Options: pod.LogOptions{Tail: -1}}
	h.dir = filepath.Join(h.q.LogDir, "app")
	return h
}

func (h *reading) path(attempt, index int) string {
	name := strconv.Itoa(attempt) + ".log"
	if index > 0 {
		name += "." + strconv.Itoa(index)
	}
	return filepath.Join(h.dir, name)
}

// write appends entries; each is "o text" or "e text" for the stream, "O text" or "E text" for a
// part of a line. The clock goes on by a second each time.
func (h *reading) write(attempt, index int, entries ...string) {
	h.t.Helper()
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	f, err := os.OpenFile(h.path(attempt, index), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	for _, e := range entries {
		stream := map[byte]string{'o': "stdout F", 'e': "stderr F", 'O': "stdout P", 'E': "stderr P"}[e[0]]
		if _, err := fmt.Fprintf(f, "%s %s %s\n", h.now.Format(shim.CRITime), stream, e[2:]); err != nil {
			h.t.Fatal(err)
		}
		h.now = h.now.Add(time.Second)
	}
}

// rotate does what the relay does.
func (h *reading) rotate(attempt, keep int) {
	h.t.Helper()
	os.Remove(h.path(attempt, keep-1))
	for n := keep - 2; n >= 0; n-- {
		if err := os.Rename(h.path(attempt, n), h.path(attempt, n+1)); err != nil && !os.IsNotExist(err) {
			h.t.Fatal(err)
		}
	}
	h.write(attempt, 0)
}

// all reads the log to its end.
func (h *reading) all() string {
	h.t.Helper()
	f, err := h.r.Open(h.t.Context(), h.q)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

func (h *reading) want(want string) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.all()); diff != "" {
		h.t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestLogFiles(t *testing.T) {
	tests := []struct {
		name    string
		files   map[int][]string // by rotation
		options pod.LogOptions
		want    string
	}{
		{"nothing", nil, pod.LogOptions{Tail: -1}, ""},
		{"nothing of the end", nil, pod.LogOptions{Tail: 3}, ""},
		{"two streams", map[int][]string{0: {"o one", "e two", "o "}}, pod.LogOptions{Tail: -1}, "one\ntwo\n\n"},
		{"stamps", map[int][]string{0: {"o one", "e two"}}, pod.LogOptions{Tail: -1, Timestamps: true},
			"2026-01-02T03:04:05.000000000Z one\n2026-01-02T03:04:06.000000000Z two\n"},
		{"parts", map[int][]string{0: {"O a", "O b", "o c", "o d"}}, pod.LogOptions{Tail: -1, Timestamps: true},
			"2026-01-02T03:04:05.000000000Z abc\n2026-01-02T03:04:08.000000000Z d\n"},
		{"parts of two streams", map[int][]string{0: {"O a", "e x", "o b"}}, pod.LogOptions{Tail: -1}, "a\nx\nb\n"},
		{"a part at the end", map[int][]string{0: {"o a", "O b"}}, pod.LogOptions{Tail: -1}, "a\nb\n"},
		{"rotated", map[int][]string{2: {"o 1", "o 2"}, 1: {"o 3"}, 0: {"o 4"}}, pod.LogOptions{Tail: -1}, "1\n2\n3\n4\n"},
		{"rotated, one is missing", map[int][]string{3: {"o 1"}, 1: {"o 3"}}, pod.LogOptions{Tail: -1}, "1\n3\n"},
		{"rotated in a line", map[int][]string{1: {"o 1", "O 2"}, 0: {"o 3"}}, pod.LogOptions{Tail: -1}, "1\n23\n"},
		{"since", map[int][]string{1: {"o 1", "o 2"}, 0: {"o 3", "o 4"}}, pod.LogOptions{Tail: -1, Since: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)}, "2\n3\n4\n"},
		{"tail 0", map[int][]string{0: {"o 1"}}, pod.LogOptions{Tail: 0}, ""},
		{"tail 1", map[int][]string{0: {"o 1", "o 2"}}, pod.LogOptions{Tail: 1}, "2\n"},
		{"tail all", map[int][]string{0: {"o 1", "o 2"}}, pod.LogOptions{Tail: 2}, "1\n2\n"},
		{"tail more", map[int][]string{0: {"o 1", "o 2"}}, pod.LogOptions{Tail: 20}, "1\n2\n"},
		{"tail of older files", map[int][]string{2: {"o 1", "o 2"}, 1: {"o 3"}, 0: {"o 4"}}, pod.LogOptions{Tail: 3}, "2\n3\n4\n"},
		{"tail of an older file only", map[int][]string{1: {"o 1", "o 2"}, 0: {}}, pod.LogOptions{Tail: 1}, "2\n"},
		{"tail at the edge of files", map[int][]string{2: {"o 1"}, 1: {"o 2"}, 0: {"o 3"}}, pod.LogOptions{Tail: 2}, "2\n3\n"},
		{"tail of parts", map[int][]string{0: {"o 1", "O a", "O b", "o c", "o d"}}, pod.LogOptions{Tail: 2}, "abc\nd\n"},
		{"tail in a line", map[int][]string{0: {"o 1", "o 2", "O a"}}, pod.LogOptions{Tail: 2}, "2\na\n"},
		{"tail and since", map[int][]string{0: {"o 1", "o 2", "o 3"}}, pod.LogOptions{Tail: 2, Since: time.Date(2026, 1, 2, 3, 4, 7, 0, time.UTC)}, "3\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newReading(t)
			for index := 9; index >= 0; index-- {
				if entries, ok := tt.files[index]; ok {
					h.write(0, index, entries...)
				}
			}
			h.write(1, 0, "o another attempt")
			h.q.Options = tt.options
			h.want(tt.want)
		})
	}
}

// What is not a line of the format is passed over.
func TestLogFilesGarbage(t *testing.T) {
	h := newReading(t)
	h.write(0, 0, "o 1")
	garbage := "\n\nx\nx stdout\nx stdout F\nx stdfoo F text\nx stdout Q text\n\x00\xff\n" + strings.Repeat("y", 3*blockSize+7) + "\n"
	appendLog(t, h.path(0, 0), garbage)
	h.write(0, 0, "o 2\x00\xff")
	appendLog(t, h.path(0, 0), "2026-01-02T03:04:05Z stdout P:x tagged ")
	for tail, want := range map[int]string{-1: "1\n2\x00\xff\ntagged \n", 2: "2\x00\xff\ntagged \n", 3: "1\n2\x00\xff\ntagged \n"} {
		h.q.Options.Tail = tail
		h.want(want)
	}
	appendLog(t, h.path(0, 0), "\n2026-01-0")
	h.q.Options.Tail = -1
	h.want("1\n2\x00\xff\ntagged \n")
}

func appendLog(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// The end of a log is found at every place of a block's edge.
func TestLogTailBlocks(t *testing.T) {
	h := newReading(t)
	var lines []string
	for n := range 5000 {
		lines = append(lines, fmt.Sprintf("o %d %s", n, strings.Repeat("x", n*7919%300)))
	}
	h.write(0, 1, lines[:2500]...)
	h.write(0, 0, lines[2500:]...)
	for _, tail := range []int{1, 2, 250, 251, 252, 253, 254, 255, 499, 1000, 2499, 2500, 2501, 3333, 4999, 5000, 5001} {
		h.q.Options.Tail = tail
		got := strings.Split(strings.TrimSuffix(h.all(), "\n"), "\n")
		want := lines[max(len(lines)-tail, 0):]
		if len(got) != len(want) || "o "+got[0] != want[0] || "o "+got[len(got)-1] != want[len(want)-1] {
			t.Errorf("tail %d gives %d lines, from %.20q to %.20q", tail, len(got), got[0], got[len(got)-1])
		}
	}
}

// follower reads a log that goes on.
type follower struct {
	t     *testing.T
	f     *os.File
	lines *bufio.Scanner
}

func (h *reading) follow(ctx context.Context) *follower {
	h.t.Helper()
	h.q.Options.Follow = true
	f, err := h.r.Open(ctx, h.q)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return &follower{t: h.t, f: f, lines: bufio.NewScanner(f)}
}

func (f *follower) want(lines ...string) {
	f.t.Helper()
	for _, line := range lines {
		if !f.lines.Scan() || f.lines.Text() != line {
			f.t.Fatalf("line %q, want %q (%v)", f.lines.Text(), line, f.lines.Err())
		}
	}
}

func (f *follower) wantEnd() {
	f.t.Helper()
	if f.lines.Scan() {
		f.t.Errorf("line %q after the end", f.lines.Text())
	}
}

// life is an attempt's: closing it, or a value, ends it.
type life chan struct{}

func (l life) wait(ctx context.Context) {
	select {
	case <-l:
	case <-ctx.Done():
	}
}

func TestLogFilesFollow(t *testing.T) {
	h := newReading(t)
	first := make(life)
	h.q.Wait = first.wait
	f := h.follow(t.Context()) // before there is a directory
	h.write(0, 0, "o 1")
	f.want("1")
	h.write(0, 0, "O 2")
	h.write(0, 0, "o +", "e 3")
	f.want("2+", "3")
	for n := range 10 { // rotated at once, and several times
		h.write(0, 0, fmt.Sprintf("o a%d", n))
		h.rotate(0, 5)
		h.write(0, 0, fmt.Sprintf("o b%d", n))
		f.want(fmt.Sprintf("a%d", n))
		h.rotate(0, 5)
		h.rotate(0, 5)
		f.want(fmt.Sprintf("b%d", n))
	}
	h.write(0, 0, "o last")
	close(first)
	f.want("last")
	f.wantEnd()
	h.write(1, 0, "o second")
	second := make(life)
	h.q.Wait, h.q.Attempt = second.wait, 1
	f = h.follow(t.Context())
	f.want("second")
	close(second)
	h.write(2, 0, "o third")
	f.wantEnd()
	third := make(life)
	h.q.Wait, h.q.Attempt = third.wait, 2
	f = h.follow(t.Context())
	close(third)
	f.want("third")
	f.wantEnd()
}

// The relay is often a little later than the news of the container's end.
func TestLogFilesSettle(t *testing.T) {
	for _, follow := range []bool{true, false} {
		t.Run(fmt.Sprintf("follow %v", follow), func(t *testing.T) {
			h := newReading(t)
			stdout, stderr, err := shim.MakeLogFIFOs(h.q.FIFODir, "app", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer stdout.Close()
			defer stderr.Close()
			h.write(0, 0, "o 1")
			h.q.Options.Follow, h.q.Ended = follow, time.Now()
			h.q.Wait = func(context.Context) {}
			f, err := h.r.Open(t.Context(), h.q)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			time.Sleep(200 * time.Millisecond)
			h.write(0, 0, "o 2")
			os.Remove(stdout.Name())
			os.Remove(stderr.Name())
			b, err := io.ReadAll(f)
			if err != nil || string(b) != "1\n2\n" {
				t.Errorf("log %q, %v", b, err)
			}
		})
	}
}

// A follower that goes away, a cancelled one, and the end of the daemon leave nothing running.
func TestLogFollowEnds(t *testing.T) {
	t.Run("reader", func(t *testing.T) {
		h := newReading(t)
		h.q.Wait = make(life).wait
		h.write(0, 0, "o 1")
		f := h.follow(context.Background())
		f.want("1")
		f.f.Close()
		h.r.wg.Wait()
	})
	t.Run("slow reader", func(t *testing.T) {
		h := newReading(t)
		h.q.Wait = make(life).wait
		h.write(0, 0, strings.Split(strings.Repeat("o "+strings.Repeat("x", 1000)+"\n", 200)+"o y", "\n")...)
		f := h.follow(context.Background())
		f.want(strings.Repeat("x", 1000))
		h.r.Close() // the writer waits for the pipe
	})
	t.Run("context", func(t *testing.T) {
		h := newReading(t)
		h.q.Wait = make(life).wait
		h.write(0, 0, "o 1")
		ctx, cancel := context.WithCancel(t.Context())
		f := h.follow(ctx)
		f.want("1")
		cancel()
		f.wantEnd()
	})
	t.Run("close", func(t *testing.T) {
		h := newReading(t)
		h.q.Wait = make(life).wait
		f := h.follow(t.Context())
		h.r.Close()
		f.wantEnd()
		if _, err := h.r.Open(t.Context(), h.q); pod.KindOf(err) != pod.Unavailable {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestLogLimit(t *testing.T) {
	h := newReading(t)
	h.q.Wait = make(life).wait
	h.q.Options.Follow = true
	h.r.open = maxReaders
	if _, err := h.r.Open(t.Context(), h.q); pod.KindOf(err) != pod.Exhausted {
		t.Errorf("error %v", err)
	}
	h.r.open = 0
}

// A log that is read while it is rotated all the time loses no line and shows none twice, as long
// as the reader keeps up.
func TestLogFilesRace(t *testing.T) {
	h := newReading(t)
	life := make(life)
	h.q.Wait = life.wait
	f := h.follow(t.Context())
	read, stop := make(chan struct{}, 400), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for n := range 4000 {
			h.write(0, 0, fmt.Sprintf("o %d", n))
			if n%10 != 9 {
				continue
			}
			h.rotate(0, 100)
			if n < 500 {
				continue
			}
			select {
			case <-read: // not so far ahead that files are lost
			case <-stop:
				return
			}
		}
		select {
		case life <- struct{}{}:
		case <-stop:
		}
	})
	for n := range 4000 {
		f.want(strconv.Itoa(n))
		if n%10 == 9 {
			read <- struct{}{}
		}
	}
	f.wantEnd()
}
