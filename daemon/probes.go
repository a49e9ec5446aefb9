package daemon

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
)

// defaultProbeTimeout is timeoutSeconds when the manifest has none.
const defaultProbeTimeout = time.Second

// prober runs the probes of one pod, each in a goroutine of its own at the times that
// [pod.ProbeState.NextAt] gives.
type prober struct {
	class  probing
	report func(ref pod.ProbeRef, ok bool, message string)
	// errored, when not nil, gets a probe that could not be made; that counts neither as success
	// nor as failure, as in the kubelet. It is set before the first Set.
	errored func(ref pod.ProbeRef, err error)

	wg      sync.WaitGroup
	mu      sync.Mutex
	pod     *corev1.Pod
	ips     []netip.Addr
	closed  bool
	running map[pod.ProbeRef]context.CancelFunc
}

// probing is what probes need of a [runtime.PodManager].
type probing interface {
	Probe(ctx context.Context, ref pod.Ref, container string, p probe.Probe) (ok bool, message string, err error)
	Frozen(ref pod.Ref, container string) bool
}

// newProber makes a prober without probes. class makes them; report gets each result, from any
// goroutine, and must not call the prober. The message of a failure is the kubelet's.
func newProber(class probing, report func(ref pod.ProbeRef, ok bool, message string)) *prober {
	return &prober{class: class, report: report, running: map[pod.ProbeRef]context.CancelFunc{}}
}

// Set makes the probes of refs the ones that run, and no others. Those that run already go on.
// lookup is asked once for each new one, during the call: what the probe has found so far, and when
// its container started. ips are the pod's addresses, the first one is probed.
//
// A result of a probe that Set has ended is not reported unless report was being called already.
func (b *prober) Set(p *corev1.Pod, ips []netip.Addr, refs []pod.ProbeRef, lookup func(ref pod.ProbeRef) (state pod.ProbeState, started time.Time)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.pod, b.ips = p, ips
	wanted := make(map[pod.ProbeRef]bool, len(refs))
	for _, ref := range refs {
		wanted[ref] = true
	}
	for ref, cancel := range b.running {
		if !wanted[ref] {
			cancel()
			delete(b.running, ref)
		}
	}
	for _, ref := range refs {
		container, probe := probeOf(p, ref)
		if b.running[ref] != nil || probe == nil || probe.GRPC != nil {
			continue
		}
		state, started := lookup(ref)
		if state.Attempt != ref.Attempt {
			state = pod.ProbeState{Attempt: ref.Attempt}
		}
		ctx, cancel := context.WithCancel(context.Background())
		b.running[ref] = cancel
		b.wg.Go(func() { b.repeat(ctx, ref, container, probe, state, started) })
	}
}

// Close ends all probes and waits for them. Set does nothing afterwards.
func (b *prober) Close() {
	b.mu.Lock()
	b.closed = true
	for _, cancel := range b.running {
		cancel()
	}
	clear(b.running)
	b.mu.Unlock()
	b.wg.Wait()
}

// probeOf finds the probe; nil when the pod has no such one.
func probeOf(p *corev1.Pod, ref pod.ProbeRef) (*corev1.Container, *corev1.Probe) {
	c := pod.FindContainer(&p.Spec, ref.Container)
	switch {
	case c == nil:
		return nil, nil
	case ref.Kind == pod.ProbeStartup:
		return c, c.StartupProbe
	case ref.Kind == pod.ProbeLiveness:
		return c, c.LivenessProbe
	}
	return c, c.ReadinessProbe
}

// repeat runs one probe until ctx ends.
func (b *prober) repeat(ctx context.Context, ref pod.ProbeRef, c *corev1.Container, probe *corev1.Probe, state pod.ProbeState, started time.Time) {
	at := state.NextAt(probe, started)
	if period := state.NextAt(probe, time.Time{}).Sub(state.LastAt); !state.LastAt.IsZero() && time.Since(at) > period {
		// A whole period was missed: the daemon has just started. Not all the probes of the host at
		// once.
		at = time.Now().Add(rand.N(max(period, 1)))
	}
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		ok, message, err := b.probe(ctx, c, probe)
		if ctx.Err() != nil {
			return
		}
		if !ok && b.isFrozen(c.Name) {
			ok, message, err = frozenProbe(ref.Kind)
		}
		state.LastAt = time.Now() // which is all that its times depend on; the worker records the result
		switch {
		case err == nil:
			b.report(ref, ok, message)
		case b.errored != nil:
			b.errored(ref, err)
		}
		timer.Reset(time.Until(state.NextAt(probe, started)))
	}
}

// frozenProbe is the result of a probe that has not succeeded because its container is frozen. It
// serves nobody, so it is not ready; but who has frozen it does not want it to be killed for that.
func frozenProbe(kind pod.ProbeKind) (ok bool, message string, err error) {
	const frozen = "the container is frozen"
	if kind == pod.ProbeReadiness {
		return false, frozen, nil
	}
	return false, "", pod.Errorf(pod.Unavailable, frozen)
}

// probe makes a probe once. An error means that nothing was learned.
func (b *prober) probe(ctx context.Context, c *corev1.Container, spec *corev1.Probe) (ok bool, message string, err error) {
	b.mu.Lock()
	p, ips := b.pod, b.ips
	b.mu.Unlock()
	host := ""
	switch {
	case len(ips) > 0:
		host = ips[0].String()
	case p.Spec.HostNetwork:
		host = "127.0.0.1"
	}
	question, message, err := newProbe(c, spec, host)
	if err != nil || message != "" {
		return false, message, err
	}
	return b.class.Probe(ctx, pod.RefOf(p), c.Name, question)
}

// isFrozen says whether somebody has frozen a container.
func (b *prober) isFrozen(container string) bool {
	b.mu.Lock()
	p := b.pod
	b.mu.Unlock()
	return b.class.Frozen(pod.RefOf(p), container)
}

// newProbe is a probe in a form that needs no manifest to be understood, or what is wrong with it.
// host is the pod's address.
func newProbe(c *corev1.Container, spec *corev1.Probe, host string) (p probe.Probe, message string, err error) {
	p.Timeout = time.Duration(spec.TimeoutSeconds) * time.Second
	if p.Timeout <= 0 {
		p.Timeout = defaultProbeTimeout
	}
	switch {
	case spec.Exec != nil:
		p.Exec = probeArgs(c, spec.Exec.Command)
	case spec.HTTPGet != nil:
		p.HTTP = &probe.HTTP{Path: spec.HTTPGet.Path, Scheme: strings.ToLower(string(spec.HTTPGet.Scheme))}
		for _, h := range spec.HTTPGet.HTTPHeaders {
			p.HTTP.Headers = append(p.HTTP.Headers, probe.Header(h))
		}
		p.HTTP.Host, p.HTTP.Port, message = probeAddress(c, spec.HTTPGet.Port, spec.HTTPGet.Host, host)
	case spec.TCPSocket != nil:
		p.TCP = &probe.TCP{}
		p.TCP.Host, p.TCP.Port, message = probeAddress(c, spec.TCPSocket.Port, spec.TCPSocket.Host, host)
	default:
		err = pod.Errorf(pod.Invalid, "cannot probe container %q: the probe has no handler", c.Name)
	}
	return p, message, err
}

// probeAddress is the host and the port to connect to, or what is wrong.
func probeAddress(c *corev1.Container, port intstr.IntOrString, wanted, host string) (_ string, number int, message string) {
	if wanted != "" {
		host = wanted
	}
	if host == "" {
		return "", 0, "the pod has no IP address"
	}
	number = port.IntValue()
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				number = int(p.ContainerPort)
			}
		}
	}
	if number < 1 || number > 65535 {
		return "", 0, "invalid port number: " + port.String()
	}
	return host, number, ""
}

// probeArgs replaces $(NAME) by the variables that the manifest gives values to; as in the kubelet,
// these values are taken as they are.
func probeArgs(c *corev1.Container, command []string) []string {
	args := make([]string, len(command))
	for i, arg := range command {
		args[i] = pod.Expand(arg, func(name string) (value string, ok bool) {
			for _, e := range c.Env { // the last one wins
				if e.Name == name && e.ValueFrom == nil {
					value, ok = e.Value, true
				}
			}
			return value, ok
		})
	}
	return args
}
