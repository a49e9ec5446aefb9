package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEvent(t *testing.T) {
	dir := t.TempDir()
	if value, err := Event(filepath.Join(dir, "gone"), "frozen"); value != "" || err != nil {
		t.Errorf("a cgroup that is gone: %q, %v", value, err)
	}
	file := filepath.Join(dir, "cgroup.events")
	if err := os.WriteFile(file, []byte("populated 1\nfrozen 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"populated": "1", "frozen": "0"} {
		if value, err := Event(dir, name); value != want || err != nil {
			t.Errorf("%s: %q, %v", name, value, err)
		}
	}
	if value, err := Event(dir, "froz"); err == nil {
		t.Errorf("a value that is not there: %q", value)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if value, err := Event(dir, "frozen"); err == nil {
		t.Errorf("a file that cannot be read: %q", value)
	}
}

func TestWriteToWhatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := SetFrozen(dir, false); err != nil {
		t.Error(err)
	}
	if err := Kill(dir); err != nil {
		t.Error(err)
	}
	// An error of another kind is one.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SetFrozen(file, true); err == nil {
		t.Error("freezing what is no directory succeeded")
	}
}

// cgroupDir makes a cgroup.
func cgroupDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(Root(), "magikpod-cgroup-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v; run as root", err)
	}
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestRemove: a cgroup with a process in it, here in one below, stays until that was killed; then
// all of it goes.
func TestRemove(t *testing.T) {
	dir := cgroupDir(t)
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	group, err := os.Open(below)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if pids, err := Processes(below); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("it has the processes %v (%v), expected %d", pids, err, cmd.Process.Pid)
	}
	if err := Remove(dir); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removed with a process in it: %v", err)
	}
	if err := Kill(dir); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	if err := RemoveWithin(dir, 10*time.Second, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if err := Remove(dir); err != nil {
		t.Errorf("removed once more: %v", err)
	}
	done := make(chan struct{})
	close(done)
	full := t.TempDir()
	if err := os.WriteFile(full+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveWithin(full, time.Hour, done); err == nil {
		t.Error("what cannot be removed was")
	}
}

// TestUsage: what is not counted is nil, and the working set is never negative, though the files
// are read one after the other.
func TestUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  Usage
		ok    bool
	}{
		"nothing": {nil, Usage{}, true},
		"all": {map[string]string{
			"cpu.stat": "usage_usec 1500\nuser_usec 1000\n", "memory.current": "10000\n", "memory.max": "65536\n", "memory.stat": "anon 6000\ninactive_file 3000\n",
			"pids.current": "7\n", "memory.events": "oom 3\noom_kill 2\noom_group_kill 1\n",
		}, Usage{CPUUsec: new(uint64(1500)), Memory: new(uint64(10000)), WorkingSet: new(uint64(7000)), MemoryLimit: new(uint64(65536)), PIDs: new(uint64(7)), OOMKills: new(uint64(2))}, true},
		"no limit":       {map[string]string{"memory.max": "max\n"}, Usage{}, true},
		"another moment": {map[string]string{"memory.current": "1000\n", "memory.stat": "inactive_file 3000\n"}, Usage{Memory: new(uint64(1000)), WorkingSet: new(uint64(0))}, true},
		"nonsense":       {map[string]string{"cpu.stat": "usage_usec\n"}, Usage{}, false},
	} {
		dir := t.TempDir()
		for file, text := range tc.files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ReadUsage(dir)
		if !reflect.DeepEqual(got, tc.want) || (err == nil) != tc.ok {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
