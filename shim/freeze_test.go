package shim

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/cgroup"
)

// newCgroup makes a cgroup of version 2, below this process's own, with a process in it.
func newCgroup(t *testing.T) string {
	t.Helper()
	needRoot(t)
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	own := ""
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = path
		}
	}
	dir, err := os.MkdirTemp(filepath.Join(cgroup.Root(), own), "magikpod-test-")
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "1000")
	err = sleep.Start()
	if err == nil {
		err = os.WriteFile(dir+"/cgroup.procs", fmt.Append(nil, sleep.Process.Pid), 0)
	}
	t.Cleanup(func() {
		_ = cgroup.SetFrozen(dir, false)
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func frozen(t *testing.T, cgroup string) bool {
	t.Helper()
	events, err := os.ReadFile(cgroup + "/cgroup.events")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(events), "frozen 1\n")
}

// TestFreeze: cgroups are frozen until somebody says so on standard input, whatever signals say;
// for a while longer when who has its other end dies; and by one at a time.
func TestFreeze(t *testing.T) {
	one, two, lock := newCgroup(t), newCgroup(t), t.TempDir()
	cmd := exec.Command("/proc/self/exe", FreezeCommand, lock, one, filepath.Join(filepath.Dir(one), "gone"), two)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != Frozen+"\n" {
		t.Fatalf("it says %q (%v)", line, err)
	}
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	if !frozen(t, one) || !frozen(t, two) {
		t.Error("the cgroups are not frozen")
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil || frozen(t, one) || frozen(t, two) {
		t.Errorf("it leaves frozen cgroups, or fails: %v", err)
	}

	orphan := exec.Command("/proc/self/exe", FreezeCommand, lock, one, t.TempDir()+"/file/cgroup")
	stdout, err = orphan.StdoutPipe()
	if err == nil {
		err = orphan.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != Frozen+"\n" {
		t.Fatalf("it says %q (%v)", line, err)
	}
	// The next one, which gets its word at once, waits for it.
	next := exec.Command("/proc/self/exe", FreezeCommand, lock, one)
	next.Stdin = strings.NewReader("\n")
	out, err := next.CombinedOutput()
	if err != nil || string(out) != Frozen+"\n" || frozen(t, one) {
		t.Errorf("the next one says %q: %v", out, err)
	}
	if d := time.Since(began); d < orphanTime-time.Second {
		t.Errorf("it has got the cgroups after %s", d)
	}
	if err := orphan.Wait(); err != nil {
		t.Errorf("with a cgroup that is gone, and nobody at standard input: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = exec.Command("/proc/self/exe", FreezeCommand, lock, one, file).CombinedOutput()
	if err == nil || strings.Contains(string(out), Frozen+"\n") || frozen(t, one) {
		t.Errorf("with something else than a cgroup it says %q: %v", out, err)
	}
}
