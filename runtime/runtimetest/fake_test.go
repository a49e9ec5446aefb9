package runtimetest

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// host is one pod on a Fake.
type host struct {
	*Fake
	t   *testing.T
	pod *corev1.Pod
	ref pod.Ref
}

func newHost(t *testing.T, containers ...string) *host {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"}}
	for _, name := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name})
	}
	return &host{Fake: New(), t: t, pod: p, ref: pod.RefOf(p)}
}

func (h *host) sandbox() {
	h.t.Helper()
	if err := h.CreateSandbox(h.t.Context(), runtime.SandboxConfig{Pod: h.pod}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) config(name string, attempt int) runtime.ContainerConfig {
	for i := range h.pod.Spec.Containers {
		if c := &h.pod.Spec.Containers[i]; c.Name == name {
			return runtime.ContainerConfig{Pod: h.pod, Container: c, Attempt: attempt}
		}
	}
	panic(name)
}

func (h *host) run(name string, attempt int) error {
	return h.RunContainer(h.t.Context(), h.config(name, attempt))
}

func (h *host) mustRun(name string, attempt int) {
	h.t.Helper()
	if err := h.run(name, attempt); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) state(name string) pod.ContainerState {
	h.t.Helper()
	s, err := h.Observe(h.t.Context(), h.ref)
	if err != nil {
		h.t.Fatal(err)
	}
	return s.Containers[name]
}

// end checks that the container has exited, and how.
func (h *host) end(name string, code, signal int, reason string) {
	h.t.Helper()
	s := h.state(name)
	if s.Stage != pod.ContainerExited || s.ExitCode != code || s.Signal != signal || s.Reason != reason || s.PID != 0 {
		h.t.Errorf("container %s: %+v, want exit code %d, signal %d, %s", name, s, code, signal, reason)
	}
}

func (h *host) kind(err error, want pod.Kind) {
	h.t.Helper()
	if pod.KindOf(err) != want {
		h.t.Errorf("error %v is of kind %q, want %q", err, pod.KindOf(err), want)
	}
}

func (h *host) clean() {
	h.t.Helper()
	if leaks := h.Leaks(); len(leaks) > 0 {
		h.t.Errorf("left: %q", leaks)
	}
	if problems := h.Problems(); len(problems) > 0 {
		h.t.Errorf("problems: %q", problems)
	}
}

// delete ends the pod and checks that nothing is left.
func (h *host) delete() pod.RuntimeState {
	h.t.Helper()
	state, err := h.DeleteSandbox(h.t.Context(), h.ref, 30*time.Second)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.Forget(h.t.Context(), h.ref); err != nil {
		h.t.Fatal(err)
	}
	h.clean()
	return state
}

func bubble(t *testing.T, do func(t *testing.T)) { t.Helper(); synctest.Test(t, do) }

func TestLife(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a", "b")
		var mu sync.Mutex
		reports := 0
		h.OnChange(func(ref pod.Ref) {
			mu.Lock()
			defer mu.Unlock()
			if ref == h.ref {
				reports++
			}
		})
		h.Behave("b", Behavior{Runs: 3 * time.Second, ExitCode: 7}, Behavior{})
		h.kind(h.run("a", 0), pod.Conflict) // no sandbox yet
		h.sandbox()
		h.sandbox()
		h.mustRun("a", 0)
		h.mustRun("b", 0)
		begin := time.Now()
		if s := h.state("a"); s.Stage != pod.ContainerRunning || s.PID == 0 || !s.StartedAt.Equal(begin) || s.ID == "" {
			t.Errorf("running: %+v", s)
		}
		time.Sleep(4 * time.Second)
		h.end("b", 7, 0, pod.ReasonError)
		if s := h.state("b"); s.FinishedAt.Sub(begin) != 3*time.Second {
			t.Errorf("b ended at %v, want 3 s after %v", s.FinishedAt, begin)
		}
		h.mustRun("b", 0) // made already
		h.end("b", 7, 0, pod.ReasonError)
		h.mustRun("b", 1)
		time.Sleep(time.Hour)
		if s := h.state("b"); s.Stage != pod.ContainerRunning || s.Attempt != 1 {
			t.Errorf("attempt 1: %+v", s)
		}
		h.kind(h.run("b", 0), pod.Conflict)
		h.kind(h.run("b", 2), pod.Conflict)
		if !h.Exit(h.ref, "b", 0) || h.Exit(h.ref, "b", 0) {
			t.Error("Exit does not say whether the container ran")
		}
		h.end("b", 0, 0, pod.ReasonCompleted)
		h.OOMKill(h.ref, "a")
		h.end("a", 137, 9, pod.ReasonOOMKilled)
		mu.Lock()
		if reports < 6 {
			t.Errorf("%d reports", reports)
		}
		mu.Unlock()
		want := []string{"sandbox of default/web", "container a of default/web", "container b of default/web", "files of default/web"}
		if diff := cmp.Diff(want, h.Leaks()); diff != "" {
			t.Error(diff)
		}
		h.kind(h.Forget(t.Context(), h.ref), pod.Conflict)
		state := h.delete()
		if state.Sandbox.Stage != pod.SandboxAbsent || state.Containers["a"].ExitCode != 137 || state.Containers["b"].Attempt != 1 {
			t.Errorf("last state: %+v", state)
		}
		if again := h.delete(); len(again.Containers) != 0 {
			t.Errorf("state of a pod that is gone: %+v", again)
		}
	})
}

func TestStop(t *testing.T) {
	tests := []struct {
		name     string
		behavior Behavior
		grace    time.Duration
		takes    time.Duration
		code     int
		signal   int
		reason   string
	}{
		{"obeys", Behavior{}, 30 * time.Second, 0, 0, 0, pod.ReasonCompleted},
		{"slowly", Behavior{StopDelay: 2 * time.Second, StopCode: 3}, 30 * time.Second, 2 * time.Second, 3, 0, pod.ReasonError},
		{"dies of it", Behavior{StopCode: 143}, 30 * time.Second, 0, 143, 15, pod.ReasonError},
		{"ignores it", Behavior{IgnoreStop: true}, 5 * time.Second, 5 * time.Second, 137, 9, pod.ReasonError},
		{"too slow", Behavior{StopDelay: time.Minute}, 5 * time.Second, 5 * time.Second, 137, 9, pod.ReasonError},
		{"no grace", Behavior{}, 0, 0, 137, 9, pod.ReasonError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHost(t, "a")
				h.Behave("a", tt.behavior)
				h.sandbox()
				h.mustRun("a", 0)
				begin := time.Now()
				if err := h.StopContainer(t.Context(), h.ref, "a", tt.grace); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took != tt.takes {
					t.Errorf("took %v, want %v", took, tt.takes)
				}
				h.end("a", tt.code, tt.signal, tt.reason)
				for _, name := range []string{"a", "never"} {
					if err := h.StopContainer(t.Context(), h.ref, name, tt.grace); err != nil {
						t.Errorf("stop of what does not run: %v", err)
					}
				}
				h.delete()
			})
		})
	}
}

// A stop that nobody waits for goes on, and a second one can shorten it.
func TestStopAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a")
		h.Behave("a", Behavior{IgnoreStop: true})
		h.sandbox()
		h.mustRun("a", 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h.kind(h.StopContainer(ctx, h.ref, "a", time.Hour), pod.Unavailable)
		if s := h.state("a"); s.Stage != pod.ContainerStopping {
			t.Fatalf("state: %+v", s)
		}
		begin := time.Now()
		if _, err := h.DeleteSandbox(t.Context(), h.ref, 2*time.Second); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
		h.delete()
	})
}

func TestStartError(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a")
		h.Behave("a", Behavior{StartError: "exec: \"nginx\": not found", StartDelay: time.Second}, Behavior{StartDelay: 2 * time.Second})
		h.sandbox()
		err := h.run("a", 0)
		if err == nil || !strings.Contains(err.Error(), `cannot start container "a": exec: "nginx": not found`) {
			t.Errorf("error: %v", err)
		}
		h.end("a", 128, 0, pod.ReasonStartError)
		h.kind(h.run("a", 0), pod.Internal) // an attempt is made once
		// An attempt whose starter goes away is not there.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h.kind(h.RunContainer(ctx, h.config("a", 1)), pod.Unavailable)
		if s := h.state("a"); s.Attempt != 0 || s.Reason != pod.ReasonStartError {
			t.Errorf("state: %+v", s)
		}
		h.mustRun("a", 1)
		h.delete()
	})
}

// All are stopped at once, except those that must wait for others.
func TestDeleteOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a", "b", "log", "mesh")
		h.Behave("a", Behavior{StopDelay: 2 * time.Second})
		h.Behave("b", Behavior{StopDelay: 3 * time.Second})
		h.sandbox()
		begin := time.Now()
		for name, after := range map[string][]string{"a": nil, "b": nil, "log": {"a"}, "mesh": {"log", "a", "b"}} {
			config := h.config(name, 0)
			config.StopAfter = after
			if err := h.RunContainer(t.Context(), config); err != nil {
				t.Fatal(err)
			}
		}
		state := h.delete()
		for name, want := range map[string]time.Duration{"a": 2 * time.Second, "b": 3 * time.Second, "log": 2 * time.Second, "mesh": 3 * time.Second} {
			if got := state.Containers[name].FinishedAt.Sub(begin); got != want {
				t.Errorf("%s ended after %v, want %v", name, got, want)
			}
		}
	})
}

func TestSandbox(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a", "b")
		h.DelaySandboxes(time.Second)
		h.Behave("b", Behavior{StartDelay: time.Minute})
		h.sandbox()
		if s, _ := h.Observe(t.Context(), h.ref); s.Sandbox.Stage != pod.SandboxStarting {
			t.Errorf("sandbox: %+v", s)
		}
		begin := time.Now()
		h.mustRun("a", 0)
		if time.Since(begin) != time.Second {
			t.Error("the container did not wait for the sandbox")
		}
		failed := make(chan error)
		go func() { failed <- h.run("b", 0) }()
		synctest.Wait()
		if !h.KillSandbox(h.ref) || h.KillSandbox(h.ref) {
			t.Error("KillSandbox does not say whether there was one")
		}
		h.kind(<-failed, pod.Internal)
		if s, _ := h.Observe(t.Context(), h.ref); s.Sandbox.Stage != pod.SandboxDead || s.Containers["a"].Stage != pod.ContainerRunning {
			t.Errorf("dead sandbox: %+v", s)
		}
		h.kind(h.CreateSandbox(t.Context(), runtime.SandboxConfig{Pod: h.pod}), pod.Conflict)
		h.kind(h.run("b", 1), pod.Conflict)
		share := true
		h.pod.Spec.ShareProcessNamespace = &share
		h.delete()
		h.DelaySandboxes(0)
		h.sandbox()
		h.mustRun("a", 0)
		h.KillSandbox(h.ref)
		h.end("a", 137, 9, pod.ReasonError)
		h.delete()
	})
}

func TestAdmin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a", "b")
		h.sandbox()
		h.mustRun("a", 0)
		h.mustRun("b", 0)
		h.AdminStop(h.ref, "a", time.Minute)
		if s := h.state("a"); !s.StoppedByAdmin || s.Stage != pod.ContainerExited {
			t.Errorf("a: %+v", s)
		}
		if s := h.state("b"); s.StoppedByAdmin || s.Stage != pod.ContainerRunning {
			t.Errorf("b: %+v", s)
		}
		h.AdminStopSandbox(h.ref, time.Minute)
		s, _ := h.Observe(t.Context(), h.ref)
		if !s.Sandbox.StoppedByAdmin || s.Sandbox.Stage != pod.SandboxDead || !s.Containers["b"].StoppedByAdmin {
			t.Errorf("after the stop of the slice: %+v", s)
		}
		h.delete()
	})
}

func TestSignal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a")
		h.sandbox()
		h.kind(h.SignalContainer(t.Context(), h.ref, "a", syscall.SIGHUP), pod.NotFound)
		h.mustRun("a", 0)
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL} {
			if err := h.SignalContainer(t.Context(), h.ref, "a", sig); err != nil {
				t.Fatal(err)
			}
		}
		h.end("a", 137, 9, pod.ReasonError)
		if got := h.Signals(h.ref, "a"); !slices.Equal(got, []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL}) {
			t.Errorf("signals: %v", got)
		}
		h.kind(h.SignalContainer(t.Context(), h.ref, "a", syscall.SIGHUP), pod.Conflict)
		h.delete()
	})
}

// A second daemon finds what the first has left.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a")
		h.OnChange(func(pod.Ref) {})
		h.Behave("a", Behavior{Runs: time.Minute, ExitCode: 1})
		h.sandbox()
		h.mustRun("a", 0)
		old := h.Fake
		old.OnChange(func(pod.Ref) { t.Error("the old daemon was notified") })
		h.Fake = old.Restart()
		if _, err := old.Observe(t.Context(), h.ref); pod.KindOf(err) != pod.Unavailable {
			t.Errorf("the old daemon's call: %v", err)
		}
		reported := make(chan pod.Ref, 1)
		h.OnChange(func(ref pod.Ref) { reported <- ref })
		if err := h.Adopt(t.Context(), h.ref); err != nil {
			t.Fatal(err)
		}
		if s := h.state("a"); s.Stage != pod.ContainerRunning {
			t.Errorf("state: %+v", s)
		}
		if ref := <-reported; ref != h.ref {
			t.Errorf("reported: %v", ref)
		}
		h.OnChange(nil)
		h.end("a", 1, 0, pod.ReasonError)

		h.Fake = h.Restart()
		h.state("a")
		if p := h.Problems(); len(p) != 1 || p[0] != "Observe default/web before Adopt" {
			t.Errorf("problems: %q", p)
		}
		h.Reboot()
		h.Fake = h.Restart()
		if s, _ := h.Observe(t.Context(), h.ref); s.Sandbox.Stage != pod.SandboxAbsent || len(s.Containers) > 0 {
			t.Errorf("after a reboot: %+v", s)
		}
		if diff := cmp.Diff([]string{"files of default/web"}, h.Leaks()); diff != "" {
			t.Error(diff)
		}
		h.sandbox()
		h.delete()
	})
}

func TestFault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a")
		bad := errors.New("injected")
		var when bool
		h.Fault = func(c Call) error {
			if c.Method == "RunContainer" && c.Done == when {
				return bad
			}
			return nil
		}
		h.sandbox()
		if err := h.run("a", 0); !errors.Is(err, bad) {
			t.Errorf("error: %v", err)
		}
		if s := h.state("a"); s.Stage != "" {
			t.Errorf("a call that failed before has done something: %+v", s)
		}
		when = true
		if err := h.run("a", 0); !errors.Is(err, bad) {
			t.Errorf("error: %v", err)
		}
		if s := h.state("a"); s.Stage != pod.ContainerRunning {
			t.Errorf("a call that failed after has done nothing: %+v", s)
		}
		h.Fault = nil
		h.mustRun("a", 0)
		h.delete()
		var got []string
		for _, c := range h.Calls() {
			if c.Method != "Observe" {
				got = append(got, c.String())
			}
		}
		want := []string{"CreateSandbox default/web", "RunContainer default/web a attempt=0", "RunContainer default/web a attempt=0",
			"RunContainer default/web a attempt=0", "DeleteSandbox default/web", "Forget default/web"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestProblems(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a", "b")
		h.Behave("a", Behavior{StartDelay: time.Second})
		h.Behave("b", Behavior{StartDelay: time.Second, IgnoreStop: true})
		h.sandbox()
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b"} { // allowed at the same time
			wg.Go(func() { h.mustRun(name, 0) })
		}
		wg.Wait()
		h.rules()
		wg.Go(func() { _ = h.StopContainer(t.Context(), h.ref, "b", time.Second) })
		synctest.Wait()
		_ = h.run("b", 1)
		_, _ = h.DeleteSandbox(t.Context(), h.ref, time.Second)
		wg.Wait()
		want := []string{"RunContainer default/web b attempt=1 during another mutating call", "DeleteSandbox default/web during another mutating call"}
		if diff := cmp.Diff(want, h.Problems()); diff != "" {
			t.Error(diff)
		}
	})
}

// rules checks the rules only.
func (h *host) rules() {
	h.t.Helper()
	if problems := h.Problems(); len(problems) > 0 {
		h.t.Errorf("problems: %q", problems)
	}
}

func TestExec(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHost(t, "a")
		h.sandbox()
		exec := func(p runtime.Process, args ...string) (runtime.ExitStatus, error) {
			p.Args = args
			return h.Exec(t.Context(), h.ref, "a", p)
		}
		_, err := exec(runtime.Process{}, "true")
		h.kind(err, pod.NotFound)
		h.mustRun("a", 0)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		tests := []struct {
			args    []string
			timeout time.Duration
			want    runtime.ExitStatus
			takes   time.Duration
		}{
			{[]string{"true"}, 0, runtime.ExitStatus{}, 0},
			{[]string{"false"}, 0, runtime.ExitStatus{Code: 1}, 0},
			{[]string{"exit", "42"}, time.Second, runtime.ExitStatus{Code: 42}, 0},
			{[]string{"missing"}, 0, runtime.ExitStatus{Code: 127}, 0},
			{[]string{"sleep", "2"}, 0, runtime.ExitStatus{}, 2 * time.Second},
			{[]string{"sleep", "20"}, 3 * time.Second, killed, 3 * time.Second},
			{[]string{"echo", "hello", "you"}, 0, runtime.ExitStatus{}, 0},
		}
		for _, tt := range tests {
			begin := time.Now()
			got, err := exec(runtime.Process{Timeout: tt.timeout, Stdout: w}, tt.args...)
			if err != nil || got != tt.want || time.Since(begin) != tt.takes {
				t.Errorf("%q: %+v, %v after %v", tt.args, got, err, time.Since(begin))
			}
		}
		b := make([]byte, 100)
		if n, err := r.Read(b); err != nil || string(b[:n]) != "hello you\n" {
			t.Errorf("echo wrote %q, %v", b[:n], err)
		}
		time.AfterFunc(time.Second, func() { h.Exit(h.ref, "a", 0) })
		if got, err := exec(runtime.Process{}, "sleep", "20"); err != nil || got != killed {
			t.Errorf("the process outlived its container: %+v, %v", got, err)
		}
		_, err = exec(runtime.Process{}, "true")
		h.kind(err, pod.Conflict)
		h.delete()
	})
}
