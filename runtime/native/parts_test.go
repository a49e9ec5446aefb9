package native

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "TERM": 15, "term": 15, " SIGQUIT ": 3, "9": 9, "64": 64, "RTMIN": 34, "SIGRTMIN+3": 37, "SIGRTMAX-1": 63, "RTMAX": 64, "SIGCLD": 17, "iot": 6, "SIGPOLL": 29,
		"": 0, "0": 0, "65": 0, "-1": 0, "SIG": 0, "SIGNOPE": 0, "RTMIN+31": 0, "RTMAX+1": 0, "RTMINx": 0,
	} {
		if got := parseSignal(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestStopSignal(t *testing.T) {
	usr1, bad := corev1.Signal("SIGUSR1"), corev1.Signal("SIGNONE")
	for _, tc := range []struct {
		own   *corev1.Signal
		image string
		want  syscall.Signal
	}{{nil, "", 15}, {nil, "SIGQUIT", 3}, {nil, "nonsense", 15}, {&usr1, "SIGQUIT", 10}, {&bad, "SIGQUIT", 3}} {
		c := &corev1.Container{}
		if tc.own != nil {
			c.Lifecycle = &corev1.Lifecycle{StopSignal: tc.own}
		}
		if got := stopSignal(c, runtime.ImageConfig{StopSignal: tc.image}); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}

func TestStageMounts(t *testing.T) {
	mounts, binds := stageMounts("/run/p", "/run/p/c/a", []runtime.Mount{
		{Source: "/v/one", SubPath: "x", Destination: "/one", ReadOnly: true, Propagation: "rslave"},
		{Destination: "/scratch"},
		{SharedTmpfs: "mem", Destination: "/mem"},
	})
	wantMounts := []runtime.Mount{
		{Source: "/run/p/c/a/mnt/0", Destination: "/one", ReadOnly: true, Propagation: "rslave"},
		{Destination: "/scratch"},
		{Source: "/run/p/c/a/mnt/1", Destination: "/mem"},
	}
	wantBinds := []shim.Bind{
		{Source: "/v/one", SubPath: "x", Target: "/run/p/c/a/mnt/0", ReadOnly: true},
		{Source: "/run/p/tmpfs/mem", Target: "/run/p/c/a/mnt/1"},
	}
	if !slices.Equal(mounts, wantMounts) || !slices.Equal(binds, wantBinds) {
		t.Errorf("%+v\n%+v", mounts, binds)
	}
}

// TestStateOf checks what the states of a unit mean.
func TestStateOf(t *testing.T) {
	start, end := time.Unix(100, 0), time.Unix(200, 0)
	ended := func(change func(*units.State)) units.State {
		s := units.State{Active: "failed", Sub: "failed", Result: "exit-code", ExecMainPID: 7, ExecMainCode: 1, ExecMainStatus: 3, ExecMainStart: start, ExecMainExit: end, StatusText: shim.StatusStarted}
		if change != nil {
			change(&s)
		}
		return s
	}
	previous := &pod.ContainerState{Stage: pod.ContainerExited, Attempt: 1, ExitCode: 44}
	for _, tc := range []struct {
		name               string
		unit               units.State
		unknown            bool
		starting, stopping bool
		want               pod.ContainerState
	}{
		{name: "queued", unit: units.State{Active: "activating"}, starting: true, want: pod.ContainerState{Stage: pod.ContainerStarting}},
		{name: "systemd's moment", unit: units.State{Active: "inactive", Sub: "dead", MainPID: 7, ExecMainPID: 7}, starting: true, want: pod.ContainerState{Stage: pod.ContainerStarting}},
		{name: "adopted while it starts", unit: units.State{Active: "activating", MainPID: 7, ExecMainPID: 7}, want: pod.ContainerState{Stage: pod.ContainerStarting}},
		{name: "runs", unit: units.State{Active: "active", Sub: "running", MainPID: 7, ExecMainPID: 7, ExecMainStart: start, StatusText: shim.StatusStarted},
			want: pod.ContainerState{Stage: pod.ContainerRunning, PID: 7, StartedAt: start}},
		{name: "is being stopped", unit: units.State{Active: "deactivating", Sub: "stop-sigterm", MainPID: 7, ExecMainPID: 7, ExecMainStart: start, StatusText: shim.StatusStarted},
			want: pod.ContainerState{Stage: pod.ContainerStopping, PID: 7, StartedAt: start}},
		{name: "is being stopped by hand", unit: units.State{Active: "active", Sub: "running", MainPID: 7, ExecMainPID: 7, ExecMainStart: start, StatusText: shim.StatusStarted}, stopping: true,
			want: pod.ContainerState{Stage: pod.ContainerStopping, PID: 7, StartedAt: start}},
		{name: "failed", unit: ended(nil), want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 3, Reason: pod.ReasonError, StartedAt: start, FinishedAt: end}},
		{name: "failed at once", unit: ended(func(s *units.State) { s.StatusText = shim.StatusCreated }),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 3, Reason: pod.ReasonError, StartedAt: start, FinishedAt: end}},
		{name: "completed", unit: ended(func(s *units.State) { s.Active, s.Sub, s.Result, s.ExecMainStatus = "active", "exited", "success", 0 }),
			want: pod.ContainerState{Stage: pod.ContainerExited, Reason: pod.ReasonCompleted, StartedAt: start, FinishedAt: end}},
		{name: "killed", unit: ended(func(s *units.State) { s.Result, s.ExecMainCode, s.ExecMainStatus = "signal", 2, 9 }),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 137, Signal: 9, Reason: pod.ReasonError, StartedAt: start, FinishedAt: end}},
		{name: "out of memory", unit: ended(func(s *units.State) { s.Result, s.ExecMainCode, s.ExecMainStatus = "oom-kill", 2, 9 }),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 137, Signal: 9, Reason: pod.ReasonOOMKilled, StartedAt: start, FinishedAt: end}},
		{name: "by an administrator", unit: ended(func(s *units.State) { s.StoppedByAdmin = true }),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 3, Reason: pod.ReasonError, StartedAt: start, FinishedAt: end, StoppedByAdmin: true}},
		{name: "exit 75 of the container", unit: ended(func(s *units.State) { s.ExecMainStatus = shim.ExitTempFail }),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 75, Reason: pod.ReasonError, StartedAt: start, FinishedAt: end}},
		{name: "exit 75 of launch", unit: ended(func(s *units.State) { s.ExecMainStatus, s.StatusText = shim.ExitTempFail, "" }), want: *previous},
		{name: "launch failed", unit: ended(func(s *units.State) { s.StatusText = "" }),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 128, Reason: pod.ReasonStartError, Message: "the container could not be started (exit-code)", FinishedAt: end}},
		{name: "start failed", unit: ended(func(s *units.State) {
			s.StatusText, s.Result, s.ExecMainCode, s.ExecMainStatus = shim.StatusNotStarted, "signal", 2, 9
		}),
			want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 128, Reason: pod.ReasonStartError, Message: "the container could not be started (signal)", FinishedAt: end}},
		{name: "start fails", unit: ended(func(s *units.State) { s.StatusText = shim.StatusNotStarted }), starting: true, want: pod.ContainerState{Stage: pod.ContainerStarting}},
		{name: "gone", unknown: true, want: pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 255, Reason: pod.ReasonUnknown, Message: "the unit of the container is gone"}},
	} {
		c := &container{record: &attemptRecord{Attempt: 2, ID: "id", Previous: previous}, starting: tc.starting, stopping: tc.stopping}
		if tc.want != *previous {
			tc.want.Attempt, tc.want.ID = 2, "id"
		}
		if got := stateOf(c, tc.unit, !tc.unknown); got != tc.want {
			t.Errorf("%s: %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func TestHostFacts(t *testing.T) {
	facts := hostFacts()
	if facts.MemoryBytes < 1<<20 {
		t.Errorf("%d bytes of memory", facts.MemoryBytes)
	}
	if os.Getuid() == 0 && !slices.Contains(facts.Capabilities, "CAP_CHOWN") {
		t.Errorf("%v", facts.Capabilities)
	}
	if facts.LowerOOMScore != slices.Contains(facts.Capabilities, "CAP_SYS_RESOURCE") {
		t.Errorf("%+v", facts)
	}
	found := false
	for _, device := range hostDevices("/dev") {
		found = found || device.Path == "/dev/null" && device.Type == "c" && device.Major == 1 && device.Minor == 3
		if strings.HasPrefix(device.Path, "/dev/pts/") || device.Path == "/dev/console" {
			t.Errorf("%+v", device)
		}
	}
	if !found {
		t.Error("no /dev/null")
	}
}

func TestFindRuntime(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "runc-9")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho runc version 9.1+x\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := findRuntime(t.Context(), path, "/run/x")
	if err != nil || r.name != "runc" || r.version != "9.1+x" || r.root != "/run/x/runtime/runc" || r.cgroupsPath("a/b.service") != "/a/b.service/container" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, wanted := range []string{"kata", "/usr/bin/kata", filepath.Join(dir, "crun-missing")} {
		if _, err := findRuntime(t.Context(), wanted, "/run/x"); pod.KindOf(err) != pod.Unsupported {
			t.Errorf("%s: %v", wanted, err)
		}
	}
}

// TestBadNames checks that no name leads out of the directories.
func TestBadNames(t *testing.T) {
	m := &Manager{config: Config{RunDir: t.TempDir(), StateDir: t.TempDir()}, sandboxes: map[types.UID]*sandbox{}}
	for _, uid := range []types.UID{"", ".", "..", "a/b", "/", "../x"} {
		ref := pod.Ref{Namespace: "n", Name: "p", UID: uid}
		if err := m.Adopt(t.Context(), ref); pod.KindOf(err) != pod.Invalid {
			t.Errorf("%q: %v", uid, err)
		}
		if err := m.Forget(t.Context(), ref); pod.KindOf(err) != pod.Invalid {
			t.Errorf("%q: %v", uid, err)
		}
	}
}
