package guest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// TestLimits: limits act, their use is counted, and a container whose memory is used up is killed
// for it.
func TestLimits(t *testing.T) {
	m := guesttest.Start(t)
	controllers, err := os.ReadFile(filepath.Join(filepath.Dir(m.Cgroup), "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(strings.Fields(string(controllers)), controller) {
			t.Skipf("needs the cgroup controller %s, which this host has not: go test -exec '.cache/magikvm run --here --' ./runtime/microvm/guest", controller)
		}
	}
	limited := func(name, script string, memory int64) wire.Create {
		request := guesttest.Container(t, name, nil, "/bin/sh", "-c", script)
		pids, quota, period := int64(20), int64(50000), uint64(100000)
		change(t, &request, func(spec *specs.Spec) {
			spec.Linux.Resources = &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
			}
		})
		return request
	}
	session := m.Run(t, limited("a", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max memory.oom.group; sleep 1000", 64<<20))
	go session.Run(t.Context(), client.IO{})
	eventually(t, "stats", func() bool {
		stats, err := m.Stats(t.Context())
		return err == nil && len(stats.Containers) == 1 && stats.Containers[0].MemoryLimit == 64<<20 && stats.Containers[0].Memory > 0 && stats.Containers[0].PIDs >= 1 && stats.Containers[0].CPUUsec > 0
	})
	memory := int64(96 << 20)
	data, err := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Update(t.Context(), "a", data); err != nil {
		t.Error(err)
	}
	if stats, err := m.Stats(t.Context()); err != nil || stats.Containers[0].MemoryLimit != 96<<20 {
		t.Errorf("%+v %v", stats, err)
	}
	exit, stdout, _ := outcome(t, m.Run(t, limited("b", "cat /sys/fs/cgroup/memory.max; tail /dev/zero; echo survived", 32<<20)))
	if !exit.OOM || exit.Code != 137 || stdout != "33554432\n" {
		t.Errorf("%+v %q", exit, stdout)
	}
}
