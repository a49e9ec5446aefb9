package pod

import (
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestNextModel plays random events on random pods against the simulated runtime and checks after
// every plan what must always be true. The seeds are fixed, so a failure can be repeated.
func TestNextModel(t *testing.T) {
	for seed := range int64(400) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &model{t: t, r: rand.New(rand.NewSource(seed))}
			m.world = newWorld(m.randomPod())
			for range 60 {
				m.event()
				m.syncs(m.r.Intn(4))
				if m.deleted {
					return
				}
			}
			m.remove()
		})
	}
}

type model struct {
	*world
	t *testing.T
	r *rand.Rand
}

func (m *model) randomPod() *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.UID = "p", "default", "uid"
	policies := []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}
	p.Spec.RestartPolicy = policies[m.r.Intn(3)]
	if m.r.Intn(4) == 0 {
		p.Spec.ActiveDeadlineSeconds = new(int64(m.r.Intn(2000) + 1))
	}
	probe := func() *corev1.Probe {
		if m.r.Intn(3) > 0 {
			return nil
		}
		return &corev1.Probe{FailureThreshold: int32(m.r.Intn(3) + 1), SuccessThreshold: 1, PeriodSeconds: 1}
	}
	for i := range m.r.Intn(4) {
		c := corev1.Container{Name: fmt.Sprintf("i%d", i)}
		if m.r.Intn(2) == 0 {
			c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
			c.StartupProbe, c.LivenessProbe = probe(), probe()
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	for i := range 1 + m.r.Intn(3) {
		p.Spec.Containers = append(p.Spec.Containers,
			corev1.Container{Name: fmt.Sprintf("c%d", i), StartupProbe: probe(), LivenessProbe: probe(), ReadinessProbe: probe()})
	}
	return p
}

// event makes something happen.
func (m *model) event() {
	names := m.names()
	name := names[m.r.Intn(len(names))]
	switch n := m.r.Intn(100); {
	case n < 30:
		m.exit(name, []int{0, 0, 1, 137}[m.r.Intn(4)], 0, ReasonError)
	case n < 50:
		m.now = m.now.Add(time.Duration(m.r.Intn(700)) * time.Second)
	case n < 70:
		kinds := []ProbeKind{ProbeStartup, ProbeLiveness, ProbeReadiness}
		m.probe(name, kinds[m.r.Intn(3)], m.r.Intn(2) == 0)
	case n < 74:
		m.imageErrors[name] = m.r.Intn(3)
	case n < 78:
		m.startErrors[name] = m.r.Intn(3)
	case n < 82:
		m.killSandbox(m.r.Intn(2) == 0)
	case n < 85:
		m.adminStop(name)
	case n < 88:
		m.reboot()
	case n < 94:
		m.desired(DesiredRun, nil)
	case n < 98:
		m.desired(DesiredStop, nil)
	case n < 99:
		m.stubborn[name] = true
	default:
		m.remove()
	}
}

// syncs makes n syncs of a worker; some are cut short in the middle.
func (m *model) syncs(n int) {
	for range n {
		m.observe()
		plan := m.check()
		steps := plan.Steps
		if len(steps) > 0 && m.r.Intn(5) == 0 {
			steps = steps[:m.r.Intn(len(steps))]
		}
		for _, s := range steps {
			m.carryOut(s)
		}
		if len(m.violations) > 0 {
			m.t.Fatalf("%v\nplan %v\nseen %+v", m.violations, plan, m.seen)
		}
		if m.deleted {
			return
		}
	}
}

// check asks for the plan and holds it to the invariants that can be seen in it.
func (m *model) check() Plan {
	plan := Next(m.pod, m.seen, m.now)
	if again := Next(m.pod, m.seen, m.now); !reflect.DeepEqual(plan, again) {
		m.t.Fatalf("two plans for one observation: %v and %v", plan, again)
	}
	status := StatusOf(m.pod, m.seen, m.pod.Status, m.now)
	if !reflect.DeepEqual(status, m.pod.Status) {
		m.t.Fatalf("the status is not stable:\n%+v\n%+v", m.pod.Status, status)
	}
	if !plan.WakeAt.IsZero() && !plan.WakeAt.After(m.now) {
		m.t.Fatalf("wake at %s, now is %s", plan.WakeAt, m.now)
	}
	if m.seen.Desired != DesiredRun && (len(plan.Probes) > 0 || !plan.WakeAt.IsZero()) {
		m.t.Fatalf("probes or a timer while the desired state is %s: %+v", m.seen.Desired, plan)
	}
	for _, s := range plan.Steps {
		if s.Op == OpStartContainer {
			m.checkOrder(s.Container)
		}
	}
	if m.healthy() && len(plan.Steps) > 0 {
		m.t.Fatalf("all is well, and yet %v\nseen %+v", plan.Steps, m.seen)
	}
	if display := DisplayState(m.pod, m.seen); display == "" {
		m.t.Fatalf("no display state: %+v", m.pod.Status)
	}
	return plan
}

// checkOrder: everything before an init container is done, and everything before a container, when
// it is started.
func (m *model) checkOrder(name string) {
	for i := range m.pod.Spec.InitContainers {
		c := &m.pod.Spec.InitContainers[i]
		if c.Name == name {
			return
		}
		fact := m.state.Containers[c.Name]
		sidecar := c.RestartPolicy != nil
		if m.state.Sandbox.Stage != SandboxReady || !sidecar && !(fact.Stage == ContainerExited && fact.ExitCode == 0) || sidecar && fact.Stage == "" {
			m.t.Fatalf("%s is started before %s is done: %+v", name, c.Name, fact)
		}
	}
}

// healthy says whether all that shall run runs, and nothing is asked of the pod.
func (m *model) healthy() bool {
	if m.seen.Desired != DesiredRun || m.seen.Finished || m.state.Sandbox.Stage != SandboxReady {
		return false
	}
	if d := m.pod.Spec.ActiveDeadlineSeconds; d != nil && !m.now.Before(m.pod.Status.StartTime.Add(time.Duration(*d)*time.Second)) {
		return false
	}
	for _, c := range slices.Concat(m.pod.Spec.InitContainers, m.pod.Spec.Containers) {
		o := m.seen.Containers[c.Name]
		done := o.Stage == ContainerExited && o.ExitCode == 0 && !o.Again
		isInit := slices.ContainsFunc(m.pod.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == c.Name })
		if isInit && c.RestartPolicy == nil {
			if !done || o.StoppedByAdmin {
				return false
			}
			continue
		}
		if o.Stage != ContainerRunning || o.Startup.Failed || o.Liveness.Failed {
			return false
		}
	}
	return true
}

// remove deletes the pod, which must come to an end whatever state it is in, and must leave nothing.
func (m *model) remove() {
	m.desired(DesiredDelete, nil)
	for range 60 {
		m.syncs(1)
		if m.deleted {
			return
		}
	}
	m.t.Fatalf("the delete does not end: %+v", m.seen)
}
