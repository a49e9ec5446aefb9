package runtimetest

import (
	"context"
	"fmt"
	goruntime "runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// mutant is a manager that breaks one promise.
type mutant struct {
	runtime.PodManager
	create  func(n int, next func() error) error
	run     func(n int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error
	stop    func(grace time.Duration, next func(time.Duration) error) error
	remove  func(n int, next func() (pod.RuntimeState, error)) (pod.RuntimeState, error)
	signal  func(next func() error) error
	forget  func(next func() error) error
	exec    func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error)
	observe func(state pod.RuntimeState) pod.RuntimeState
	change  func(f func(pod.Ref)) func(pod.Ref)
	invalid field.ErrorList

	mu    sync.Mutex
	calls map[string]int
}

// count returns how often it was asked before.
func (m *mutant) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls == nil {
		m.calls = map[string]int{}
	}
	m.calls[what]++
	return m.calls[what] - 1
}

func (m *mutant) Validate(*corev1.Pod) field.ErrorList { return m.invalid }

func (m *mutant) OnChange(changed func(pod.Ref)) {
	if m.change != nil {
		changed = m.change(changed)
	}
	m.PodManager.OnChange(changed)
}

func (m *mutant) CreateSandbox(ctx context.Context, c runtime.SandboxConfig) error {
	next := func() error { return m.PodManager.CreateSandbox(ctx, c) }
	if m.create == nil {
		return next()
	}
	return m.create(m.count("create"), next)
}

func (m *mutant) RunContainer(ctx context.Context, c runtime.ContainerConfig) error {
	next := func(c runtime.ContainerConfig) error { return m.PodManager.RunContainer(ctx, c) }
	if m.run == nil {
		return next(c)
	}
	return m.run(m.count("run "+c.Container.Name), c, next)
}

func (m *mutant) StopContainer(ctx context.Context, ref pod.Ref, name string, grace time.Duration) error {
	next := func(grace time.Duration) error { return m.PodManager.StopContainer(ctx, ref, name, grace) }
	if m.stop == nil {
		return next(grace)
	}
	return m.stop(grace, next)
}

func (m *mutant) SignalContainer(ctx context.Context, ref pod.Ref, name string, sig syscall.Signal) error {
	next := func() error { return m.PodManager.SignalContainer(ctx, ref, name, sig) }
	if m.signal == nil {
		return next()
	}
	return m.signal(next)
}

func (m *mutant) DeleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration) (pod.RuntimeState, error) {
	next := func() (pod.RuntimeState, error) { return m.PodManager.DeleteSandbox(ctx, ref, grace) }
	if m.remove == nil {
		return next()
	}
	return m.remove(m.count("delete"), next)
}

func (m *mutant) Forget(ctx context.Context, ref pod.Ref) error {
	next := func() error { return m.PodManager.Forget(ctx, ref) }
	if m.forget == nil {
		return next()
	}
	return m.forget(next)
}

func (m *mutant) Exec(ctx context.Context, ref pod.Ref, name string, p runtime.Process) (runtime.ExitStatus, error) {
	next := func(p runtime.Process) (runtime.ExitStatus, error) { return m.PodManager.Exec(ctx, ref, name, p) }
	if m.exec == nil {
		return next(p)
	}
	return m.exec(p, next)
}

func (m *mutant) Observe(ctx context.Context, ref pod.Ref) (pod.RuntimeState, error) {
	state, err := m.PodManager.Observe(ctx, ref)
	if m.observe != nil && err == nil {
		state = m.observe(state)
	}
	return state, err
}

// each changes the state of every container.
func each(change func(c *pod.ContainerState)) func(pod.RuntimeState) pod.RuntimeState {
	return func(state pod.RuntimeState) pod.RuntimeState {
		for name, c := range state.Containers {
			change(&c)
			state.Containers[name] = c
		}
		return state
	}
}

// recorder notes what a check complains about, instead of failing.
type recorder struct {
	testing.TB
	mu         sync.Mutex
	complaints []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complaints = append(r.complaints, fmt.Sprintf(format, args...))
}
func (r *recorder) Error(args ...any) { r.Errorf("%s", fmt.Sprint(args...)) }
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	goruntime.Goexit()
}
func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

// TestSuiteFinds: for each promise a manager that breaks it does not pass.
func TestSuiteFinds(t *testing.T) {
	shared := map[string]pod.ContainerState{}
	looks := 0
	for _, tc := range []struct {
		name   string
		check  string // that must find it
		mutant *mutant
	}{
		{"refuses an ordinary pod", "Class", &mutant{invalid: field.ErrorList{field.Forbidden(nil, "no")}}},
		{"no second CreateSandbox", "CreateSandboxAgain", &mutant{create: func(n int, next func() error) error {
			if n > 0 {
				return pod.Errorf(pod.AlreadyExists, "cannot create sandbox: it exists")
			}
			return next()
		}}},
		{"the first sandbox only after the second call", "RunContainer", &mutant{create: func(n int, next func() error) error {
			if n == 0 {
				return nil
			}
			return next()
		}}},
		{"runs without a sandbox", "RunWithoutSandbox", &mutant{run: func(_ int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			_ = next(c)
			return nil
		}}},
		{"another kind without a sandbox", "RunWithoutSandbox", &mutant{run: func(_ int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			return pod.WithKind(pod.Internal, next(c))
		}}},
		{"returns before it runs", "RunContainer", &mutant{run: func(_ int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			time.AfterFunc(200*time.Millisecond, func() { _ = next(c) })
			return nil
		}}},
		{"forgets exit codes", "ExitCodes", &mutant{observe: each(func(c *pod.ContainerState) { c.ExitCode = 0 })}},
		{"forgets signals", "StopKills", &mutant{observe: each(func(c *pod.ContainerState) { c.Signal = 0 })}},
		{"keeps the PID", "ExitCodes", &mutant{observe: each(func(c *pod.ContainerState) { c.PID = 1234 })}},
		{"knows no PID", "RunContainer", &mutant{observe: each(func(c *pod.ContainerState) { c.PID = 0 })}},
		{"no start time", "RunContainer", &mutant{observe: each(func(c *pod.ContainerState) { c.StartedAt = time.Time{} })}},
		{"one ID for all", "NextAttempt", &mutant{observe: each(func(c *pod.ContainerState) { c.ID = "x" })}},
		{"one ID for two pods", "TwoPods", &mutant{observe: each(func(c *pod.ContainerState) { c.ID = "x" })}},
		{"no attempts", "NextAttempt", &mutant{observe: each(func(c *pod.ContainerState) { c.Attempt = 0 })}},
		{"everything is an administrator's", "StopObeyed", &mutant{observe: each(func(c *pod.ContainerState) { c.StoppedByAdmin = true })}},
		{"a repeated run is an error", "RunSameAttempt", &mutant{run: func(n int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			if n > 0 {
				return pod.Errorf(pod.AlreadyExists, "cannot run: it exists")
			}
			return next(c)
		}}},
		{"a repeated run runs again", "RunSameAttempt", &mutant{run: func(n int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			c.Attempt += n
			return next(c)
		}}},
		{"a failed start is none", "StartError", &mutant{run: func(_ int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			_ = next(c)
			return nil
		}}},
		{"no reason of a failed start", "StartError", &mutant{observe: each(func(c *pod.ContainerState) { c.Reason = pod.ReasonError })}},
		{"no message of a failed start", "StartError", &mutant{observe: each(func(c *pod.ContainerState) { c.Message = "" })}},
		{"signals nobody", "Signal", &mutant{signal: func(func() error) error { return nil }}},
		{"signals the ended", "Signal", &mutant{signal: func(next func() error) error { _ = next(); return nil }}},
		{"kills at once", "StopObeyed", &mutant{stop: func(_ time.Duration, next func(time.Duration) error) error { return next(0) }}},
		{"kills before the grace is over", "StopKills", &mutant{stop: func(grace time.Duration, next func(time.Duration) error) error { return next(grace / 2) }}},
		{"does not wait for the end", "StopObeyed", &mutant{stop: func(grace time.Duration, next func(time.Duration) error) error {
			go next(grace)
			return nil
		}}},
		{"does not kill", "StopAtOnce", &mutant{stop: func(time.Duration, func(time.Duration) error) error { return nil }}},
		{"cannot stop twice", "StopNotRunning", &mutant{stop: func() func(time.Duration, func(time.Duration) error) error {
			n := 0
			return func(grace time.Duration, next func(time.Duration) error) error {
				if n++; n > 3 {
					return pod.Errorf(pod.Conflict, "cannot stop: it does not run")
				}
				return next(grace)
			}
		}()}},
		{"deletes without a last state", "DeleteSandbox", &mutant{remove: func(_ int, next func() (pod.RuntimeState, error)) (pod.RuntimeState, error) {
			_, err := next()
			return pod.RuntimeState{Sandbox: pod.SandboxState{Stage: pod.SandboxAbsent}}, err
		}}},
		{"deletes at once", "DeleteSandbox", &mutant{run: func(_ int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			if c.Container.Name == "stubborn2" {
				c.StopAfter = []string{"stubborn"}
			}
			return next(c)
		}}},
		{"does not delete", "DeleteSandbox", &mutant{remove: func(int, func() (pod.RuntimeState, error)) (pod.RuntimeState, error) {
			return pod.RuntimeState{}, nil
		}}},
		{"cannot delete what is gone", "UnknownPod", &mutant{remove: func(int, func() (pod.RuntimeState, error)) (pod.RuntimeState, error) {
			return pod.RuntimeState{}, pod.Errorf(pod.NotFound, "cannot delete sandbox: there is none")
		}}},
		{"knows no order", "DeleteInOrder", &mutant{run: func(_ int, c runtime.ContainerConfig, next func(runtime.ContainerConfig) error) error {
			c.StopAfter = nil
			return next(c)
		}}},
		{"forgets nothing", "Forget", &mutant{forget: func(func() error) error { return nil }}},
		{"leaves something", "CreateSandboxAgain", &mutant{forget: func(func() error) error { return nil }}},
		{"exec knows no exit status", "Exec", &mutant{exec: func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error) {
			_, err := next(p)
			return runtime.ExitStatus{}, err
		}}},
		{"exec without stdin", "Exec", &mutant{exec: func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error) {
			p.Stdin = nil
			return next(p)
		}}},
		{"exec mixes outputs up", "Exec", &mutant{exec: func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error) {
			p.Stdout, p.Stderr = p.Stderr, p.Stdout
			return next(p)
		}}},
		{"exec finds nobody", "ExecNotRunning", &mutant{exec: func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error) {
			status, err := next(p)
			return status, pod.WithKind(pod.NotFound, err)
		}}},
		{"exec gives up too early", "ExecTimeout", &mutant{exec: func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error) {
			p.Timeout /= 10
			return next(p)
		}}},
		{"exec calls a timeout a success", "ExecTimeout", &mutant{exec: func(p runtime.Process, next func(runtime.Process) (runtime.ExitStatus, error)) (runtime.ExitStatus, error) {
			_, err := next(p)
			return runtime.ExitStatus{}, err
		}}},
		{"never looks the same", "ObserveIsSteady", &mutant{observe: each(func(c *pod.ContainerState) { c.PID += looks; looks++ })}},
		{"hands out its own map", "ObserveIsSteady", &mutant{observe: func(state pod.RuntimeState) pod.RuntimeState {
			for name, c := range state.Containers {
				if _, old := shared[name]; !old || c.Stage != pod.ContainerRunning {
					shared[name] = c
				}
			}
			state.Containers = shared
			return state
		}}},
		{"reports nothing", "OnChange", &mutant{change: func(func(pod.Ref)) func(pod.Ref) { return func(pod.Ref) {} }}},
		{"reports others", "OnChange", &mutant{change: func(f func(pod.Ref)) func(pod.Ref) { return func(pod.Ref) { f(pod.Ref{Name: "x"}) } }}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if complaints := findings(t, tc.check, mutantEnv(tc.mutant)); len(complaints) == 0 {
					t.Errorf("%s does not find it", tc.check)
				} else {
					t.Log(complaints[0])
				}
			})
		})
	}
}

// TestSuiteFindsAtRestart: a manager that has lost everything, or starts over.
func TestSuiteFindsAtRestart(t *testing.T) {
	for name, restart := range map[string]func(f *Fake) runtime.PodManager{
		"adopts nothing": func(*Fake) runtime.PodManager { return New() },
		"adopts other times": func(f *Fake) runtime.PodManager {
			return &mutant{PodManager: f.Restart(), observe: each(func(c *pod.ContainerState) { c.StartedAt = c.StartedAt.Add(1) })}
		},
		"adopts other PIDs": func(f *Fake) runtime.PodManager {
			return &mutant{PodManager: f.Restart(), observe: each(func(c *pod.ContainerState) { c.PID++ })}
		},
		"adopts in silence": func(f *Fake) runtime.PodManager {
			return &mutant{PodManager: f.Restart(), change: func(func(pod.Ref)) func(pod.Ref) { return func(pod.Ref) {} }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := New()
				e := Env{Manager: f, Behave: f.Behave, Leaks: f.Leaks, patience: time.Second, Restart: func(*testing.T) runtime.PodManager { return restart(f) }}
				if complaints := findings(t, "Adopt", e); len(complaints) == 0 {
					t.Error("it is not found")
				} else {
					t.Log(complaints[0])
				}
			})
		})
	}
}

func mutantEnv(m *mutant) Env {
	f := New()
	m.PodManager = f
	return Env{Manager: m, Behave: f.Behave, Leaks: f.Leaks, patience: time.Second}
}

// findings runs one check and returns what it complains about.
func findings(t *testing.T, name string, e Env) []string {
	t.Helper()
	for _, c := range checks {
		if c.name != name {
			continue
		}
		r := &recorder{TB: t}
		var done sync.WaitGroup
		done.Go(func() { c.run(t, r, e) })
		done.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.complaints
	}
	t.Fatalf("there is no check %s", name)
	return nil
}
