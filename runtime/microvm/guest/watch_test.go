package guest_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
)

// TestProbes are run where the container's ports are.
func TestProbes(t *testing.T) {
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "mkdir /www 2>/dev/null || busybox mkdir /www; echo fine > /www/ok; exec httpd -f -p 8080 -h /www"))
	eventually(t, "served", func() bool {
		reply, err := m.Probe(t.Context(), wire.Probe{Container: "a", TCP: &wire.TCPProbe{Port: 8080}})
		return err == nil && reply.Success
	})
	for _, tc := range []struct {
		name    string
		probe   wire.Probe
		success bool
		code    int
		message string
	}{
		{"http", wire.Probe{HTTP: &wire.HTTPProbe{Port: 8080, Path: "/ok"}}, true, 200, "fine"},
		{"http not found", wire.Probe{HTTP: &wire.HTTPProbe{Port: 8080, Path: "none?x=1"}}, false, http.StatusNotFound, "404"},
		{"http refused", wire.Probe{HTTP: &wire.HTTPProbe{Port: 8081}}, false, 0, "connection refused"},
		{"https to http", wire.Probe{HTTP: &wire.HTTPProbe{Scheme: "https", Port: 8080, Path: "/ok"}}, false, 0, ""},
		{"tcp refused", wire.Probe{TCP: &wire.TCPProbe{Port: 8081}}, false, 0, "connection refused"},
		{"exec", wire.Probe{Exec: []string{"sh", "-c", "echo said; echo more >&2"}}, true, 0, "said"},
		{"exec fails", wire.Probe{Exec: []string{"sh", "-c", "exit 3"}}, false, 3, ""},
		{"exec floods", wire.Probe{Exec: []string{"sh", "-c", "yes | head -c 10000000"}, Timeout: host.Patience(20 * time.Second).Milliseconds()}, true, 0, "y y y"},
		{"exec hangs", wire.Probe{Exec: []string{"sleep", "1000"}, Timeout: 300}, false, 137, "no end within 300ms"},
		{"exec not found", wire.Probe{Exec: []string{"none"}}, false, 127, "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.probe.Container = "a"
			if tc.probe.Timeout == 0 {
				tc.probe.Timeout = host.Patience(time.Second).Milliseconds()
			}
			reply, err := m.Probe(t.Context(), tc.probe)
			if err != nil || reply.Success != tc.success || reply.Code != tc.code || !strings.Contains(reply.Message, tc.message) || len(reply.Message) > wire.MaxMessage {
				t.Errorf("%v %v %d %.200q", err, reply.Success, reply.Code, reply.Message)
			}
		})
	}
	if _, err := m.Probe(t.Context(), wire.Probe{Container: "b", TCP: &wire.TCPProbe{Port: 1}}); wire.CodeOf(err) != wire.CodeContainerNotFound {
		t.Errorf("%v", err)
	}
}

// TestLimits: limits act, their use is counted, and a container whose memory is used up is killed for it.
func TestLimits(t *testing.T) {
	m := guesttest.Start(t)
	pong, err := m.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(pong.Controllers, controller) {
			t.Skipf("needs the cgroup controller %s, which this machine has not: go test -exec '.cache/magikvm run --here --' ./runtime/microvm/guest", controller)
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
		stats, err := m.Stats(t.Context(), "a")
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
	if stats, err := m.Stats(t.Context(), "a"); err != nil || stats.Containers[0].MemoryLimit != 96<<20 {
		t.Errorf("%+v %v", stats, err)
	}
	exit, stdout, _ := outcome(t, m.Run(t, limited("b", "cat /sys/fs/cgroup/memory.max; tail /dev/zero; echo survived", 32<<20)))
	if !exit.OOM || exit.Code != 137 || stdout != "33554432\n" {
		t.Errorf("%+v %q", exit, stdout)
	}
}
