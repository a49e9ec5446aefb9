package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dozingPause is a pause process with a journal of its own.
type dozingPause struct {
	*exec.Cmd
	config  PauseConfig
	journal *fakeJournal
}

// startPause starts pause and waits until it is ready.
func startPause(t *testing.T) *dozingPause {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	p := &dozingPause{config: PauseConfig{
		MountNS: podNamespace(t, t.TempDir()), FIFODir: dir, SharePID: true, PIDFile: filepath.Join(t.TempDir(), "pidns.pid"),
		JournalSocket: filepath.Join(dir, "socket"), Pod: "web",
	}}
	p.journal = listenJournal(t, p.config.JournalSocket)
	notify := listenJournal(t, filepath.Join(dir, "notify"))
	p.Cmd = exec.Command("/proc/self/exe", writeConfig(t, p.config))
	p.Env = append(os.Environ(), asAgent+"=pause", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	p.Stderr = os.Stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	notify.next(t)
	return p
}

func (p *dozingPause) proc(name string) string {
	return fmt.Sprintf("/proc/%d/%s", p.Process.Pid, name)
}

// untilDozes waits until the process is another program.
func (p *dozingPause) untilDozes(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if exe, err := os.Readlink(p.proc("exe")); err == nil && strings.HasPrefix(exe, "/memfd:") {
			break
		} else if err != nil || time.Now().After(end) {
			t.Fatalf("it does not doze: its program is %q (%v)", exe, err)
		}
	}
	waitForComm(t, fmt.Sprint(p.Process.Pid), "magikshim")
}

// TestPauseDozes: a pause process that has nothing to do is next to nothing in memory, and still
// misses no line, no container and no stop.
func TestPauseDozes(t *testing.T) {
	p := startPause(t)
	command, err := os.ReadFile(p.proc("cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := MakeLogFIFOs(p.config.FIFODir, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	say := func(f *os.File, text string) {
		t.Helper()
		if _, err := f.WriteString(text + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(want string) {
		t.Helper()
		if got := p.journal.next(t)["MESSAGE"]; got != want {
			t.Errorf("the journal has %q, want %q", got, want)
		}
	}
	descriptors := func() int {
		t.Helper()
		list, err := os.ReadDir(p.proc("fd"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	say(first, "awake")
	hear("awake")
	p.untilDozes(t)

	status, err := os.ReadFile(p.proc("status"))
	if err != nil || !strings.Contains(string(status), "\nThreads:\t1\n") {
		t.Errorf("it has more than one thread (%v):\n%s", err, status)
	}
	var size int
	memory, err := os.ReadFile(p.proc("smaps_rollup"))
	_, rest, _ := strings.Cut(string(memory), "\nPss:")
	if _, scanErr := fmt.Sscan(rest, &size); err != nil || scanErr != nil || size > 64 {
		t.Errorf("it takes %d KB of memory (%v, %v)", size, err, scanErr)
	}
	if now, err := os.ReadFile(p.proc("cmdline")); err != nil || string(now) != string(command) {
		t.Errorf("its command line is %q, want %q (%v)", now, command, err)
	}
	held, err := os.Readlink(p.proc("ns/mnt"))
	if pod, _ := os.Readlink(p.config.MountNS); err != nil || held != pod {
		t.Errorf("it is in %s, want %s (%v)", held, pod, err)
	}

	say(first, "woken")
	hear("woken")
	if exe, err := os.Readlink(p.proc("exe")); err != nil || strings.HasPrefix(exe, "/memfd:") {
		t.Errorf("it relays lines, and its program is %q (%v)", exe, err)
	}
	waitForComm(t, fmt.Sprint(p.Process.Pid), "magikshim")
	before := descriptors()
	p.untilDozes(t)

	second, _, err := MakeLogFIFOs(p.config.FIFODir, "b", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	say(second, "another")
	hear("another")
	if now := descriptors(); now != before+2 { // the new container's
		t.Errorf("it has %d descriptors, and had %d before it dozed: it keeps some each time", now, before)
	}
}

// TestPauseDozesStop: a stop wakes it, and what was written just before is not lost.
func TestPauseDozesStop(t *testing.T) {
	p := startPause(t)
	stdout, _, err := MakeLogFIFOs(p.config.FIFODir, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	p.untilDozes(t)
	if _, err := stdout.WriteString("last words\n"); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(StopSignal); err != nil {
		t.Fatal(err)
	}
	if got := p.journal.next(t)["MESSAGE"]; got != "last words" {
		t.Errorf("the journal has %q", got)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	pid, err := os.ReadFile(p.config.PIDFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err == nil {
		t.Error("the namespace's first process outlives pause")
	}
}

// TestPauseDozesChild: it ends with the first process of the PID namespace.
func TestPauseDozesChild(t *testing.T) {
	p := startPause(t)
	p.untilDozes(t)
	data, err := os.ReadFile(p.config.PIDFile)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil || p.ProcessState.ExitCode() != ExitFailure {
		t.Errorf("ended: %v, want status %d", err, ExitFailure)
	}
}

// TestMayDoze: what is in memory only keeps a relay awake.
func TestMayDoze(t *testing.T) {
	s := &stream{}
	r := &relay{config: &PauseConfig{}, streams: map[int]*stream{0: s}}
	if !r.mayDoze() {
		t.Fatal("it may not, and has nothing to do")
	}
	s.pending = []byte("beginning of a line")
	if r.mayDoze() {
		t.Error("it would forget the beginning of a line")
	}
	s.pending, r.lost = nil, 1
	if r.mayDoze() {
		t.Error("it would forget that lines were lost")
	}
	r.lost, r.deadline = 0, time.Now()
	if r.mayDoze() {
		t.Error("it would never stop")
	}
}
