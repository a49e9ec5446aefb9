package onhost

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
)

func TestUsage(t *testing.T) {
	root := t.TempDir()
	slice := `/magikpod.slice/magikpod-default.slice/magikpod-default-we\x2db.slice`
	testutil.WriteFiles(t, filepath.Join(root, slice), map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
		"memory.current": "10000\n", "memory.max": "max\n", "memory.stat": "anon 6000\nfile 4000\ninactive_file 3000\n",
		"pids.current": "7\n", "pids.max": "max\n",
	})
	testutil.WriteFiles(t, filepath.Join(root, slice, "a.service"), map[string]string{
		"cpu.stat":       "usage_usec 1400\n",
		"memory.current": "1000\n", "memory.max": "65536\n", "memory.stat": "inactive_file 3000\n", // counted at another moment
	})
	testutil.WriteFiles(t, filepath.Join(root, slice, "bare.service"), nil)
	for group, want := range map[string]*pod.ResourceUse{
		slice:                {CPUNanos: new(uint64(1500000)), MemoryBytes: new(uint64(7000)), Processes: new(uint64(7))},
		slice + "/a.service": {CPUNanos: new(uint64(1400000)), MemoryBytes: new(uint64(0)), MemoryLimitBytes: 65536},
		// Without a controller nothing is known, which is not nothing.
		strings.TrimPrefix(slice, "/") + "/bare.service/": {},
		slice + "/gone.service":                           nil, "": nil,
	} {
		got, ok, err := Usage(root, group)
		if err != nil || ok != (want != nil) {
			t.Errorf("%s: %t, %v", group, ok, err)
		}
		if want != nil {
			if diff := cmp.Diff(*want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", group, diff)
			}
		}
	}
	testutil.WriteFiles(t, filepath.Join(root, slice), map[string]string{"cpu.stat": "usage_usec\n"})
	if _, _, err := Usage(root, slice); pod.KindOf(err) != pod.Internal {
		t.Errorf("nonsense in cpu.stat: %v", err)
	}
}

// The kernel's own files are read too.
func TestKernel(t *testing.T) {
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
	got, ok, err := Usage(root, group)
	if err != nil || !ok || *got.CPUNanos == 0 {
		t.Errorf("%+v, %t, %v", got, ok, err)
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
