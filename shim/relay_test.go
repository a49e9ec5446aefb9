package shim

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeJournal is a unix datagram socket that understands the journal's native protocol.
type fakeJournal struct {
	conn    *net.UnixConn
	entries chan map[string]string
}

func listenJournal(t *testing.T, path string) *fakeJournal {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	j := &fakeJournal{conn: conn, entries: make(chan map[string]string, 1<<17)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		data, oob := make([]byte, 2<<20), make([]byte, 256)
		for {
			n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
			if err != nil {
				return
			}
			entry := data[:n]
			if oobn > 0 {
				messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
				fds, _ := unix.ParseUnixRights(&messages[0])
				f := os.NewFile(uintptr(fds[0]), "entry")
				entry, _ = os.ReadFile("/proc/self/fd/" + strconv.Itoa(fds[0]))
				f.Close()
			}
			fields := map[string]string{}
			for line := range strings.SplitSeq(strings.TrimSuffix(string(entry), "\n"), "\n") {
				k, v, _ := strings.Cut(line, "=")
				fields[k] = v
			}
			j.entries <- fields
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return j
}

// next returns the next entry.
func (j *fakeJournal) next(t *testing.T) map[string]string {
	t.Helper()
	select {
	case e := <-j.entries:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no entry came")
		return nil
	}
}

// newWake stands for the descriptor of the signals that stop a relay; the relay closes it.
func newWake(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}

// stop makes run drain and return. It must not have returned.
func (r *relay) stop() { _, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

type testRelay struct {
	*relay
	dir, socket string
	done        chan error
	mu          sync.Mutex
	complaints  []string
}

// startRelay runs a relay in a temporary directory; it is stopped at the end of the test.
func startRelay(t *testing.T, config PauseConfig) *testRelay {
	t.Helper()
	r := &testRelay{dir: t.TempDir(), done: make(chan error, 1)}
	var err error
	r.relay, err = newRelay(r.dir, newWake(t), func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.complaints = append(r.complaints, err.Error())
	})
	if err != nil {
		t.Fatal(err)
	}
	r.socket = filepath.Join(r.dir, "socket")
	config.JournalSocket = r.socket
	if err := r.openSink(&config); err != nil {
		t.Fatal(err)
	}
	go func() { r.done <- r.run() }()
	t.Cleanup(func() {
		if r.done != nil {
			r.finish(t)
		}
	})
	return r
}

func (r *testRelay) finish(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	r.stop()
	select {
	case err := <-r.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the relay does not stop")
	}
	r.done = nil
	return time.Since(begin)
}

func (r *testRelay) fifos(t *testing.T, container string, attempt int) (stdout, stderr *os.File) {
	t.Helper()
	stdout, stderr, err := MakeLogFIFOs(r.dir, container, attempt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdout.Close(); stderr.Close() })
	return stdout, stderr
}

func waitGone(t *testing.T, path string) {
	t.Helper()
	for range 1000 {
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s is still there", path)
}

func TestRelayFields(t *testing.T) {
	r := startRelay(t, PauseConfig{Namespace: "default", Pod: "web", UID: "u1", Units: map[string]string{"nginx": "magikpod-default-web-nginx.service"}})
	j := listenJournal(t, r.socket)
	stdout, stderr := r.fifos(t, "nginx", 3)
	fmt.Fprint(stdout, "hello=1\n")
	want := map[string]string{
		"PRIORITY": "6", "SYSLOG_IDENTIFIER": "web-nginx", "MAGIKPOD_NAMESPACE": "default", "MAGIKPOD_POD": "web", "MAGIKPOD_POD_UID": "u1",
		"MAGIKPOD_CONTAINER": "nginx", "MAGIKPOD_RESTART": "3", "MAGIKPOD_STREAM": "stdout", "CONTAINER_NAME": "nginx",
		"OBJECT_SYSTEMD_UNIT": "magikpod-default-web-nginx.service", "MESSAGE": "hello=1",
	}
	if got := j.next(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	fmt.Fprint(stderr, "oops")
	ReleaseLogFIFOs(t.Context(), stderr)
	got := j.next(t)
	if got["MESSAGE"] != "oops" || got["PRIORITY"] != "3" || got["MAGIKPOD_STREAM"] != "stderr" {
		t.Errorf("the last line of stderr, without newline: %v", got)
	}
	waitGone(t, filepath.Join(r.dir, "nginx.3.stderr"))
	if _, err := os.Stat(filepath.Join(r.dir, "nginx.3.stdout")); err != nil {
		t.Errorf("the other stream: %v", err)
	}
}

// TestRelayLines checks that lines arrive whole and in order, however they are cut by writes, up to
// a megabyte, and marked above.
func TestRelayLines(t *testing.T) {
	r := startRelay(t, PauseConfig{})
	j := listenJournal(t, r.socket)
	stdout, _ := r.fifos(t, "c", 0)
	long := strings.Repeat("x", 900_000)
	huge := strings.Repeat("y", maxJournalLine+5)
	go func() {
		for _, part := range []string{"a", "b\nc\n", "\n", long + "\n", huge + "\n", "end"} {
			fmt.Fprint(stdout, part)
		}
		ReleaseLogFIFOs(t.Context(), stdout)
	}()
	for i, want := range []struct {
		text    string
		partial bool
	}{{"ab", false}, {"c", false}, {"", false}, {long, false}, {huge[:maxJournalLine], true}, {"yyyyy", false}, {"end", false}} {
		got := j.next(t)
		if got["MESSAGE"] != want.text || (got["CONTAINER_PARTIAL_MESSAGE"] == "true") != want.partial {
			t.Fatalf("line %d: %d bytes, partial %q; want %d bytes, partial %v", i, len(got["MESSAGE"]), got["CONTAINER_PARTIAL_MESSAGE"], len(want.text), want.partial)
		}
	}
}

// TestRelayJournalAway checks that no line is lost while the journal is not there, or is replaced.
func TestRelayJournalAway(t *testing.T) {
	r := startRelay(t, PauseConfig{})
	stdout, _ := r.fifos(t, "c", 0)
	fmt.Fprint(stdout, "before\n")
	time.Sleep(50 * time.Millisecond)
	first := listenJournal(t, r.socket)
	if got := first.next(t)["MESSAGE"]; got != "before" {
		t.Fatalf("got %q", got)
	}
	first.conn.Close()
	fmt.Fprint(stdout, "between\n")
	time.Sleep(50 * time.Millisecond)
	os.Remove(r.socket)
	second := listenJournal(t, r.socket)
	if got := second.next(t)["MESSAGE"]; got != "between" {
		t.Fatalf("got %q", got)
	}
}

// TestRelayAttempts starts many attempts at once: each line must keep its attempt.
func TestRelayAttempts(t *testing.T) {
	r := startRelay(t, PauseConfig{})
	j := listenJournal(t, r.socket)
	const attempts, lines = 60, 20
	var writers sync.WaitGroup
	for n := range attempts {
		stdout, stderr := r.fifos(t, "c", n)
		writers.Go(func() {
			for i := range lines {
				fmt.Fprintf(stdout, "%d %d\n", n, i)
			}
			ReleaseLogFIFOs(t.Context(), stdout, stderr)
		})
	}
	writers.Wait()
	next := map[string]int{}
	for range attempts * lines {
		e := j.next(t)
		if want := fmt.Sprintf("%s %d", e["MAGIKPOD_RESTART"], next[e["MAGIKPOD_RESTART"]]); e["MESSAGE"] != want {
			t.Fatalf("got %q, want %q", e["MESSAGE"], want)
		}
		next[e["MAGIKPOD_RESTART"]]++
	}
}

func TestRelayEnd(t *testing.T) {
	r := startRelay(t, PauseConfig{})
	j := listenJournal(t, r.socket)
	stdout, _ := r.fifos(t, "c", 0) // both stay open, as with a unit that remains after exit
	fmt.Fprint(stdout, "one\ntwo")
	if err := EndLog(r.dir, "c", 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if got := j.next(t)["MESSAGE"]; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, name := range []string{"c.0.stdout", "c.0.stderr", "c.0.end"} {
		waitGone(t, filepath.Join(r.dir, name))
	}
}

// TestRelayStop checks both ends of the drain: at once when all pipes are at their end, and bounded
// when one is not.
func TestRelayStop(t *testing.T) {
	r := startRelay(t, PauseConfig{})
	j := listenJournal(t, r.socket)
	stdout, stderr := r.fifos(t, "c", 0)
	fmt.Fprint(stdout, strings.Repeat("line\n", 5000))
	ReleaseLogFIFOs(t.Context(), stdout, stderr)
	if took := r.finish(t); took > drainTime {
		t.Errorf("the drain took %s although there was no writer", took)
	}
	for range 5000 {
		j.next(t)
	}

	r = startRelay(t, PauseConfig{})
	listenJournal(t, r.socket)
	r.fifos(t, "c", 0)
	if took := r.finish(t); took < drainTime-100*time.Millisecond || took > 2*drainTime {
		t.Errorf("the drain with an open writer took %s, want about %s", took, drainTime)
	}

	r = startRelay(t, PauseConfig{}) // no journal at all
	stdout, _ = r.fifos(t, "c", 0)
	fmt.Fprint(stdout, "lost\n")
	time.Sleep(20 * time.Millisecond)
	if took := r.finish(t); took > 2*drainTime {
		t.Errorf("the drain without a journal took %s", took)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if text := strings.Join(r.complaints, "; "); !strings.Contains(text, "1 lines lost") {
		t.Errorf("complaints %q do not mention the lost line", text)
	}
}

func TestRelayCRI(t *testing.T) {
	dir := t.TempDir()
	r := startRelay(t, PauseConfig{Driver: LogFile, LogDir: dir, MaxLogBytes: 64 << 10, MaxLogFiles: 3})
	stdout, stderr := r.fifos(t, "app", 1)
	long := strings.Repeat("z", maxCRILine+3)
	fmt.Fprintf(stdout, "first\n%s\n", long)
	ReleaseLogFIFOs(t.Context(), stdout)
	waitGone(t, filepath.Join(r.dir, "app.1.stdout"))
	fmt.Fprint(stderr, "err\n")
	ReleaseLogFIFOs(t.Context(), stderr)
	waitGone(t, filepath.Join(r.dir, "app.1.stderr"))
	data, err := os.ReadFile(filepath.Join(dir, "app", "1.log"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(data)) {
		stamp, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if _, err := time.Parse("2006-01-02T15:04:05.000000000Z07:00", stamp); err != nil {
			t.Error(err)
		}
		got = append(got, rest)
	}
	want := []string{"stdout F first", "stdout P " + long[:maxCRILine], "stdout F zzz", "stderr F err"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %.60q", got)
	}

	stdout, _ = r.fifos(t, "app", 2)
	for i := range 4000 {
		fmt.Fprintf(stdout, "%d %s\n", i, strings.Repeat("r", 40))
	}
	ReleaseLogFIFOs(t.Context(), stdout)
	waitGone(t, filepath.Join(r.dir, "app.2.stdout"))
	var all []byte
	for _, suffix := range []string{".2", ".1", ""} {
		part, err := os.ReadFile(filepath.Join(dir, "app", "2.log"+suffix))
		if err != nil || len(part) > 65<<10 {
			t.Fatalf("part %q: %d bytes, %v", suffix, len(part), err)
		}
		all = append(all, part...)
	}
	if _, err := os.Stat(filepath.Join(dir, "app", "2.log.3")); !os.IsNotExist(err) {
		t.Errorf("a fourth file: %v", err)
	}
	lines := bytes.Split(bytes.TrimSuffix(all, []byte("\n")), []byte("\n"))
	for i, line := range lines {
		if n := 4000 - len(lines) + i; !bytes.Contains(line, []byte(fmt.Sprintf(" F %d r", n))) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
}

// TestRelayCRIFull: what does not fit on the disk is counted, and what does is whole lines.
func TestRelayCRIFull(t *testing.T) {
	needRoot(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	r := startRelay(t, PauseConfig{Driver: LogFile, LogDir: small})
	stdout, stderr := r.fifos(t, "c", 0)
	const total = 400
	if _, err := stdout.WriteString(strings.Repeat("0123456789012345678901234567890123456789\n", total)); err != nil {
		t.Fatal(err)
	}
	ReleaseLogFIFOs(t.Context(), stdout, stderr)
	waitGone(t, stdout.Name())
	r.finish(t)
	data, err := os.ReadFile(CRIPath(small, "c", 0))
	if err != nil {
		t.Fatal(err)
	}
	kept := bytes.Count(data, newline)
	if kept < 100 || kept >= total || !bytes.HasSuffix(data, newline) {
		t.Errorf("%d lines are kept, the last one being %q", kept, data[max(len(data)-80, 0):])
	}
	if r.lost != total-kept {
		t.Errorf("%d lines are lost, want %d less %d", r.lost, total, kept)
	}
	if len(r.complaints) == 0 || !strings.Contains(r.complaints[0], "no space left on device") {
		t.Errorf("complaints: %q", r.complaints)
	}
}

func TestParseLogName(t *testing.T) {
	for name, ok := range map[string]bool{
		"c.0.stdout": true, "my-app.12.stderr": true, "c.0.end": true, ".c.0.stdout": false, "c.01.stdout": false, "c.-1.stdout": false,
		"c.0.stdin": false, "c.0": false, "a.b.0.stdout": false, ".0.stdout": false, "c.99999999999999999999.end": false,
	} {
		if _, got := parseLogName(name); got != ok {
			t.Errorf("parseLogName(%q) = %v", name, got)
		}
	}
	if _, _, err := MakeLogFIFOs(t.TempDir(), "../c", 0); err == nil {
		t.Error("a FIFO outside of the directory was made")
	}
}

func BenchmarkRelay(b *testing.B) {
	dir := b.TempDir()
	r, err := newRelay(dir, newWake(b), func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	go func() {
		buffer := make([]byte, 4096)
		for {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
		}
	}()
	r.sink = newJournal(&PauseConfig{Pod: "web", JournalSocket: socket}, r.expired)
	done := make(chan error, 1)
	go func() { done <- r.run() }()
	stdout, stderr, err := MakeLogFIFOs(dir, "c", 0)
	if err != nil {
		b.Fatal(err)
	}
	ReleaseLogFIFOs(b.Context(), stderr)
	line := []byte(strings.Repeat("x", 99) + "\n")
	block := bytes.Repeat(line, 40)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := stdout.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	ReleaseLogFIFOs(b.Context(), stdout)
	r.stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
