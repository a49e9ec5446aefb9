package pod

import (
	"fmt"
	"time"
)

// Op is what a [Step] does.
type Op string

// The steps. Each is idempotent: carrying one out twice is as good as once.
const (
	// OpCreateSandbox makes the pod's namespaces, network, volumes and pause unit (or VM).
	OpCreateSandbox Op = "create-sandbox"
	// OpStartContainer runs attempt Attempt of Container.
	OpStartContainer Op = "start-container"
	// OpStopContainer stops Container: its stop signal, Grace, SIGKILL.
	OpStopContainer Op = "stop-container"
	// OpDeleteSandbox stops everything that is left of the pod, all containers at once with Grace,
	// and removes the sandbox, its network and its namespaces. What the containers left on disk
	// (exit status, logs, volumes) stays.
	OpDeleteSandbox Op = "delete-sandbox"
	// OpFinish records that the pod has reached its terminal phase.
	OpFinish Op = "finish"
	// OpDeletePod removes all that is left of the pod: files, volumes, its name.
	OpDeletePod Op = "delete-pod"
)

// Step is one thing to do. Its String is the log line, the event and the golden line.
type Step struct {
	Op        Op
	Container string        // for the container steps
	Attempt   int           // for OpStartContainer
	Grace     time.Duration // for the stops
	Why       string        // for people, one short phrase; may be empty
}

func (s Step) String() string {
	text := string(s.Op)
	switch s.Op {
	case OpStartContainer:
		text += fmt.Sprintf(" %s attempt=%d", s.Container, s.Attempt)
	case OpStopContainer:
		text += fmt.Sprintf(" %s grace=%s", s.Container, s.Grace)
	case OpDeleteSandbox:
		text += fmt.Sprintf(" grace=%s", s.Grace)
	}
	if s.Why != "" {
		text += ": " + s.Why
	}
	return text
}

// Plan is what to do now, and when to look again although nothing changed.
type Plan struct {
	// Steps are carried out in order; neighbours of the same Op on containers may be carried out at
	// the same time.
	Steps []Step
	// WakeAt is when Next must be called again at the latest; zero when only a change of the world
	// matters.
	WakeAt time.Time
	// Probes lists the containers whose probes must be running now, in the order of the manifest.
	Probes []ProbeRef
}

// ProbeKind is one of the three probes of a container.
type ProbeKind string

// The probes.
const (
	ProbeStartup   ProbeKind = "startup"
	ProbeLiveness  ProbeKind = "liveness"
	ProbeReadiness ProbeKind = "readiness"
)

// ProbeRef names one probe of one attempt at a container.
type ProbeRef struct {
	Container string
	Attempt   int
	Kind      ProbeKind
}
