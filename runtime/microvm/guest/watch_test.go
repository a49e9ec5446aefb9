package guest_test

import (
	"context"
	"encoding/json"
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

// TestLogs: the last lines, whole, and what comes until the end.
func TestLogs(t *testing.T) {
	m := guesttest.Start(t)
	session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "trap 'printf last; exit 2' TERM; seq 5; echo err >&2; while true; do sleep 0.05; done"))
	go session.Run(t.Context(), client.IO{})
	logs := func(follow bool, tail *int) (*lineBuffer, func() wire.Exit) {
		t.Helper()
		session, err := m.Logs(t.Context(), wire.Logs{Container: "a", Follow: follow, Tail: tail})
		if err != nil {
			t.Fatal(err)
		}
		var output lineBuffer
		done := make(chan wire.Exit, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), host.Patience(30*time.Second))
			defer cancel()
			exit, err := session.Run(ctx, client.IO{Stdout: &output, Stderr: &output})
			if err != nil {
				t.Error(err)
			}
			done <- exit
		}()
		return &output, func() wire.Exit { return <-done }
	}
	eventually(t, "all lines", func() bool {
		output, end := logs(false, nil)
		end()
		return strings.Contains(output.String(), "err\n") && strings.Contains(output.String(), "1\n2\n3\n4\n5\n")
	})
	two, none := 2, 0
	if output, end := logs(false, &two); end().Code != 0 || strings.Count(output.String(), "\n") != 2 {
		t.Errorf("%q", output)
	}
	output, end := logs(true, &none)
	if err := m.Signal(t.Context(), "a", "", 15); err != nil {
		t.Fatal(err)
	}
	if exit := end(); exit.Code != 2 || output.String() != "last" {
		t.Errorf("%+v %q", exit, output)
	}
}

// TestEventsExit: who listens is told of an end.
func TestEventsExit(t *testing.T) {
	m := guesttest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, done := make(chan wire.Event, 8), make(chan error, 1)
	go func() { done <- m.Events(ctx, func(e wire.Event) { events <- e }) }()
	eventually(t, "an event", func() bool { // the subscription is a connection of its own
		request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", "exit 8")
		outcome(t, m.Run(t, request))
		select {
		case e := <-events:
			return e.Type == wire.EventExit && e.Container == "a" && e.Exit != nil && e.Exit.Code == 8
		case <-time.After(200 * time.Millisecond):
			return false
		}
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("Events has returned without an error")
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
	events := make(chan wire.Event, 8)
	go func() { _ = m.Events(t.Context(), func(e wire.Event) { events <- e }) }()
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
	eventually(t, "an OOM event", func() bool { e := <-events; return e.Type == wire.EventOOM && e.Container == "b" })
}
