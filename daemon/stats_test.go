package daemon

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

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/pod"
)

// writeCgroup makes a directory that looks like a cgroup (Linux, admin-guide/cgroup-v2).
func writeCgroup(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStats(t *testing.T) {
	root := t.TempDir()
	slice := `/magikpod.slice/magikpod-default.slice/magikpod-default-we\x2db.slice`
	writeCgroup(t, filepath.Join(root, slice), map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
		"memory.current": "10000\n", "memory.max": "max\n", "memory.stat": "anon 6000\nfile 4000\ninactive_file 3000\n",
		"pids.current": "7\n", "pids.max": "max\n",
	})
	writeCgroup(t, filepath.Join(root, slice, "a.service"), map[string]string{
		"cpu.stat":       "usage_usec 1400\n",
		"memory.current": "1000\n", "memory.max": "65536\n", "memory.stat": "inactive_file 3000\n", // counted at another moment
	})
	writeCgroup(t, filepath.Join(root, slice, "bare.service"), nil)
	begin := time.Now()
	got, err := statsOf(root, slice, map[string]string{"a": slice + "/a.service", "bare": strings.TrimPrefix(slice, "/") + "/bare.service/",
		"gone": slice + "/gone.service", "ended": ""})
	if err != nil {
		t.Fatal(err)
	}
	if got.Time.Before(begin) || got.Time.After(time.Now()) {
		t.Errorf("time %v", got.Time)
	}
	want := pod.Stats{Time: got.Time, Pod: pod.ResourceUse{CPUNanos: new(uint64(1500000)), MemoryBytes: new(uint64(7000)), Processes: new(uint64(7))},
		// Without a controller nothing is known, which is not nothing.
		Containers: map[string]pod.ResourceUse{"a": {CPUNanos: new(uint64(1400000)), MemoryBytes: new(uint64(0)), MemoryLimitBytes: 65536}, "bare": {}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := statsOf(root, "/gone.slice", nil); err != nil || *got.Pod.CPUNanos != 0 || *got.Pod.MemoryBytes != 0 || *got.Pod.Processes != 0 {
		t.Errorf("a pod that is down: %+v, %v", got, err)
	}
	writeCgroup(t, filepath.Join(root, slice), map[string]string{"cpu.stat": "usage_usec\n"})
	if _, err := statsOf(root, slice, nil); pod.KindOf(err) != pod.Internal {
		t.Errorf("nonsense in cpu.stat: %v", err)
	}
}

// The kernel's own files are read too.
func TestStatsKernel(t *testing.T) {
	root := cgroup2Mount(t)
	group := fmt.Sprintf("/magikpod-test-%d", os.Getpid())
	dir := filepath.Join(root, group)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v; run as root", err)
	}
	defer func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := statsOf(root, group, map[string]string{"a": group})
	if err != nil || *got.Pod.CPUNanos == 0 || !cmp.Equal(got.Containers["a"], got.Pod) {
		t.Errorf("%+v, %v", got, err)
	}
}

// cgroup2Mount is where cgroup version 2 is mounted.
func cgroup2Mount(t *testing.T) string {
	t.Helper()
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	t.Skip("cgroup version 2 is not mounted: mount -t cgroup2 none DIR")
	return ""
}
