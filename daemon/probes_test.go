package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
	"github.com/magikrun/magikpod/tests/probetest"
)

// probeLog collects results as lines: seconds since the start, probe, outcome.
type probeLog struct {
	mu    sync.Mutex
	begin time.Time
	lines []string
}

func (l *probeLog) report(ref pod.ProbeRef, ok bool, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	outcome := "ok"
	if !ok {
		outcome = "failed: " + message
	}
	l.lines = append(l.lines, fmt.Sprintf("%gs %s/%d %s %s", time.Since(l.begin).Seconds(), ref.Container, ref.Attempt, ref.Kind, outcome))
}

func (l *probeLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

func (l *probeLog) want(t *testing.T, want ...string) {
	t.Helper()
	got := l.take()
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func execProbe(command string, delay, period, timeout int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: strings.Fields(command)}},
		InitialDelaySeconds: delay, PeriodSeconds: period, TimeoutSeconds: timeout}
}

// probedPod is a pod on a fake runtime whose container "a" runs, with one more that has not been
// started.
func probedPod(t *testing.T, a corev1.Container) (*runtimetest.Fake, *corev1.Pod) {
	t.Helper()
	a.Name = "a"
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"}}
	p.Spec.Containers = []corev1.Container{a, {Name: "down", LivenessProbe: execProbe("true", 0, 5, 1)}}
	f := runtimetest.New()
	if err := f.CreateSandbox(t.Context(), runtime.SandboxConfig{Pod: p}); err != nil {
		t.Fatal(err)
	}
	if err := f.RunContainer(t.Context(), runtime.ContainerConfig{Pod: p, Container: &p.Spec.Containers[0]}); err != nil {
		t.Fatal(err)
	}
	return f, p
}

// A frozen container is not ready, and nothing else follows from what it does not answer.
func TestProbesOfFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := probedPod(t, corev1.Container{
			StartupProbe:   execProbe("false", 0, 1, 1),
			LivenessProbe:  execProbe("sleep 9", 0, 1, 1),
			ReadinessProbe: execProbe("false", 0, 1, 1),
		})
		log := &probeLog{begin: time.Now()}
		var errored atomic.Int32
		var frozen atomic.Bool
		frozen.Store(true)
		b := newProber(execClass{exec: f.Exec, frozen: frozen.Load}, log.report)
		b.errored = func(pod.ProbeRef, error) { errored.Add(1) }
		defer b.Close()
		refs := []pod.ProbeRef{{Container: "a", Kind: pod.ProbeStartup}, {Container: "a", Kind: pod.ProbeLiveness}, {Container: "a", Kind: pod.ProbeReadiness}}
		started := time.Now()
		b.Set(p, nil, refs, func(pod.ProbeRef) (pod.ProbeState, time.Time) { return pod.ProbeState{}, started })
		time.Sleep(1500 * time.Millisecond)
		log.want(t, "0s a/0 readiness failed: the container is frozen", "1s a/0 readiness failed: the container is frozen")
		if errored.Load() != 3 {
			t.Errorf("%d probes could not be made, want 3", errored.Load())
		}
		frozen.Store(false)
		time.Sleep(time.Second)
		log.want(t, `2s a/0 startup failed: command "false" exited with code 1`, `2s a/0 readiness failed: command "false" exited with code 1`)
	})
}

// execClass makes probes from here, as classes do whose containers are on this host.
type execClass struct {
	exec   func(ctx context.Context, ref pod.Ref, container string, p runtime.Process) (runtime.ExitStatus, error)
	frozen func() bool
}

func (c execClass) Probe(ctx context.Context, ref pod.Ref, container string, p probe.Probe) (bool, string, error) {
	return runtime.MakeProbe(ctx, p, func(process runtime.Process) (runtime.ExitStatus, error) { return c.exec(ctx, ref, container, process) })
}

func (c execClass) Frozen(pod.Ref, string) bool { return c.frozen != nil && c.frozen() }

func TestProbeTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := probedPod(t, corev1.Container{
			StartupProbe:   execProbe("false", 3, 2, 1),
			LivenessProbe:  execProbe("sleep 9", 0, 0, 2), // the default period: 10 s, counted from the end
			ReadinessProbe: execProbe("true", 1, 7, 0),
		})
		log := &probeLog{begin: time.Now()}
		b := newProber(f, log.report)
		defer b.Close()
		started := time.Now()
		asked := 0
		lookup := func(pod.ProbeRef) (pod.ProbeState, time.Time) { asked++; return pod.ProbeState{}, started }
		refs := []pod.ProbeRef{{Container: "a", Kind: pod.ProbeStartup}, {Container: "a", Kind: pod.ProbeLiveness}, {Container: "a", Kind: pod.ProbeReadiness}}
		b.Set(p, nil, refs, lookup)
		time.Sleep(8500 * time.Millisecond)
		b.Set(p, nil, refs, lookup) // changes nothing
		log.want(t, "1s a/0 readiness ok", `2s a/0 liveness failed: command "sleep 9" timed out`,
			`3s a/0 startup failed: command "false" exited with code 1`, `5s a/0 startup failed: command "false" exited with code 1`,
			`7s a/0 startup failed: command "false" exited with code 1`, "8s a/0 readiness ok")
		b.Set(p, nil, refs[1:2], lookup)
		time.Sleep(10 * time.Second)
		log.want(t, `14s a/0 liveness failed: command "sleep 9" timed out`)
		if asked != 3 {
			t.Errorf("lookup was asked %d times", asked)
		}
		b.Set(p, nil, nil, lookup)
		time.Sleep(time.Hour)
		log.want(t)
	})
}

// Close ends a probe that runs, and its result is nobody's.
func TestProbeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := probedPod(t, corev1.Container{LivenessProbe: execProbe("sleep 50", 0, 1, 100)})
		log := &probeLog{begin: time.Now()}
		b := newProber(f, log.report)
		b.errored = func(ref pod.ProbeRef, err error) { t.Errorf("%v: %v", ref, err) }
		refs := []pod.ProbeRef{{Container: "a", Kind: pod.ProbeLiveness}}
		now := func(pod.ProbeRef) (pod.ProbeState, time.Time) { return pod.ProbeState{}, time.Now() }
		b.Set(p, nil, refs, now)
		time.Sleep(10 * time.Second)
		begin := time.Now()
		b.Close()
		if took := time.Since(begin); took > 0 {
			t.Errorf("Close took %v", took)
		}
		b.Set(p, nil, refs, now)
		b.Close()
		time.Sleep(time.Hour)
		log.want(t)
	})
}

// A probe goes on where the daemon before this one was, a missed run is made up for within a
// period, and another attempt's results count for nothing.
func TestProbeResume(t *testing.T) {
	tests := []struct {
		name    string
		attempt int
		ago     time.Duration // the last run
		min     time.Duration
		max     time.Duration
	}{
		{"in time", 0, 4 * time.Second, 6 * time.Second, 6 * time.Second},
		{"due", 0, 12 * time.Second, 0, 0},
		{"missed", 0, time.Hour, 0, 10 * time.Second},
		{"other attempt", 1, 4 * time.Second, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, p := probedPod(t, corev1.Container{LivenessProbe: execProbe("true", 0, 10, 1)})
				begin := time.Now()
				ran := make(chan time.Duration, 10)
				b := newProber(execClass{exec: func(context.Context, pod.Ref, string, runtime.Process) (runtime.ExitStatus, error) {
					ran <- time.Since(begin)
					return runtime.ExitStatus{}, nil
				}}, func(pod.ProbeRef, bool, string) {})
				defer b.Close()
				b.Set(p, nil, []pod.ProbeRef{{Container: "a", Kind: pod.ProbeLiveness, Attempt: tt.attempt}}, func(pod.ProbeRef) (pod.ProbeState, time.Time) {
					return pod.ProbeState{LastAt: begin.Add(-tt.ago)}, begin.Add(-2 * time.Hour)
				})
				first := <-ran
				if first < tt.min || first > tt.max {
					t.Errorf("the first run was after %v, want %v to %v", first, tt.min, tt.max)
				}
				if second := <-ran; second-first != 10*time.Second {
					t.Errorf("the second run was %v after the first", second-first)
				}
			})
		})
	}
}

// What could not be tried is neither a success nor a failure.
func TestProbeErrored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := probedPod(t, corev1.Container{LivenessProbe: &corev1.Probe{}})
		log := &probeLog{begin: time.Now()}
		b := newProber(f, log.report)
		defer b.Close()
		var mu sync.Mutex
		kinds := map[string]pod.Kind{}
		b.errored = func(ref pod.ProbeRef, err error) {
			mu.Lock()
			defer mu.Unlock()
			kinds[ref.Container] = pod.KindOf(err)
		}
		refs := []pod.ProbeRef{{Container: "a", Kind: pod.ProbeLiveness}, {Container: "down", Kind: pod.ProbeLiveness},
			{Container: "a", Kind: pod.ProbeReadiness}, {Container: "unknown", Kind: pod.ProbeLiveness}}
		b.Set(p, nil, refs, func(pod.ProbeRef) (pod.ProbeState, time.Time) { return pod.ProbeState{}, time.Now() })
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if diff := cmp.Diff(map[string]pod.Kind{"a": pod.Invalid, "down": pod.NotFound}, kinds); diff != "" {
			t.Error(diff)
		}
		log.want(t)
	})
}

// TestProbeTable: what the manifest asks for gets the verdicts that package probe gives, and
// magikagent (runtime/microvm/guest).
func TestProbeTable(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	b := newProber(execClass{exec: func(_ context.Context, _ pod.Ref, _ string, p runtime.Process) (runtime.ExitStatus, error) {
		code, timedOut, err := probetest.Command(p.Args, p.Stdout, p.Timeout)
		if p.Stderr != p.Stdout {
			t.Error("stderr is not read")
		}
		if timedOut || code == 137 { // a signal alone does not mean that the time was over
			return runtime.ExitStatus{Code: code, Signal: 9}, nil
		}
		return runtime.ExitStatus{Code: code}, err
	}}, nil)
	defer b.Close()
	b.Set(&corev1.Pod{}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil, nil)
	probetest.Run(t, probetest.Listen, func(t *testing.T, p probe.Probe) (bool, string, error) {
		spec := &corev1.Probe{TimeoutSeconds: int32(p.Timeout / time.Second)}
		switch {
		case p.Exec != nil:
			spec.Exec = &corev1.ExecAction{}
			for _, arg := range p.Exec { // $$ is $ in a manifest
				spec.Exec.Command = append(spec.Exec.Command, strings.ReplaceAll(arg, "$$", "$$$$"))
			}
		case p.HTTP != nil:
			spec.HTTPGet = &corev1.HTTPGetAction{Scheme: corev1.URIScheme(strings.ToUpper(p.HTTP.Scheme)), Path: p.HTTP.Path, Port: intstr.FromInt(p.HTTP.Port)}
			if p.HTTP.Host != "127.0.0.1" {
				spec.HTTPGet.Host = p.HTTP.Host
			}
			for _, h := range p.HTTP.Headers {
				spec.HTTPGet.HTTPHeaders = append(spec.HTTPGet.HTTPHeaders, corev1.HTTPHeader(h))
			}
		case p.TCP != nil:
			spec.TCPSocket = &corev1.TCPSocketAction{Port: intstr.FromInt(p.TCP.Port)}
		}
		return b.probe(t.Context(), &corev1.Container{Name: "a"}, spec)
	})
}

func addresses(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// The address that is probed is the newest first one of the pod.
func TestProbeAddress(t *testing.T) {
	p := &corev1.Pod{}
	c := &corev1.Container{Name: "a"}
	gone := probetest.Listen(t)
	gone.Close()
	spec := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(gone.Addr().(*net.TCPAddr).Port)}}, TimeoutSeconds: 60}
	b := newProber(execClass{}, nil)
	defer b.Close()
	check := func(texts []string, want string) {
		t.Helper()
		ips := addresses(texts...)
		b.Set(p, ips, nil, nil)
		if _, message, _ := b.probe(t.Context(), c, spec); !strings.HasPrefix(message, want) {
			t.Errorf("with %q: message %q, want %q", ips, message, want)
		}
	}
	check(nil, "the pod has no IP address")
	check([]string{"127.0.0.1", "192.0.2.1"}, "dial tcp 127.0.0.1:")
	check([]string{"127.0.0.2"}, "dial tcp 127.0.0.2:")
	p.Spec.HostNetwork = true
	check(nil, "dial tcp 127.0.0.1:")
}

func TestProbeArgs(t *testing.T) {
	c := &corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "old"}, {Name: "A", Value: "new"}, {Name: "B", Value: "$(A)"},
		{Name: "C", ValueFrom: &corev1.EnvVarSource{}}}}
	got := probeArgs(c, []string{"sh", "-c", "$(A) $(B) $(C) $(D) $$(A) $A"})
	if diff := cmp.Diff([]string{"sh", "-c", "new $(A) $(C) $(D) $(A) $A"}, got); diff != "" {
		t.Error(diff)
	}
}
