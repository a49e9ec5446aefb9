package pod

import (
	"net/netip"
	"time"
)

// Desired is what the user last asked of a pod.
type Desired string

// The desired states.
const (
	DesiredRun    Desired = "run"
	DesiredStop   Desired = "stop"
	DesiredDelete Desired = "delete"
)

// SandboxStage is where a sandbox stands.
type SandboxStage string

// The stages of a sandbox.
//
//	Absent -> Starting -> Ready -> Dead -> Absent
const (
	// SandboxAbsent: nothing of the sandbox exists.
	SandboxAbsent SandboxStage = "absent"
	// SandboxStarting: its units are queued; containers may be queued behind it.
	SandboxStarting SandboxStage = "starting"
	// SandboxReady: its namespaces are kept by a living pause process (or VM).
	SandboxReady SandboxStage = "ready"
	// SandboxDead: it failed or was killed; what is left of it must be deleted before a new one is made.
	SandboxDead SandboxStage = "dead"
)

// SandboxState is what is true of a pod's sandbox.
type SandboxState struct {
	Stage SandboxStage `json:"stage"`
	// StoppedByAdmin is true when somebody else than magikpod stopped the pod's slice or its pause
	// unit on purpose (systemctl stop). It is respected: the pod stays down until the user starts
	// it.
	StoppedByAdmin bool   `json:"stoppedByAdmin,omitempty"`
	Message        string `json:"message,omitempty"` // why it is dead
}

// ContainerStage is where the latest attempt at a container stands.
type ContainerStage string

// The stages of a container.
//
//	Absent -> Starting -> Running -> Exited -> (next attempt) Starting
const (
	ContainerAbsent   ContainerStage = "absent"
	ContainerStarting ContainerStage = "starting"
	ContainerRunning  ContainerStage = "running"
	ContainerStopping ContainerStage = "stopping"
	ContainerExited   ContainerStage = "exited"
)

// The reasons of an exited container, as Kubernetes words them (ContainerStateTerminated.Reason).
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError" // the OCI runtime could not start it
	// ReasonUnknown: it is gone and nobody saw how (a reboot, a cleared unit). Exit code 255, as
	// the kubelet's ContainerStatusUnknown.
	ReasonUnknown = "ContainerStatusUnknown"
)

// ContainerState is what a runtime knows of the latest attempt at one container.
type ContainerState struct {
	Stage ContainerStage `json:"stage"`
	// Attempt counts from 0; it is the restart count of the container.
	Attempt    int       `json:"attempt"`
	ID         string    `json:"id,omitempty"`  // of this attempt, as in containerStatuses[].containerID without the scheme
	PID        int       `json:"pid,omitempty"` // of the first process, in the host's PID namespace; 0 when not running
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int       `json:"exitCode"` // 128+signal when killed by a signal
	Signal     int       `json:"signal,omitempty"`
	Reason     string    `json:"reason,omitempty"`  // one of the Reason constants, when exited
	Message    string    `json:"message,omitempty"` // for people: the runtime's own error for a StartError
	// StoppedByAdmin is true when somebody else than magikpod stopped the unit on purpose
	// (systemctl stop). The container is not restarted.
	StoppedByAdmin bool `json:"stoppedByAdmin,omitempty"`
	// Frozen is true while somebody has frozen all of its processes (systemctl freeze): it runs,
	// but does nothing.
	Frozen bool `json:"frozen,omitempty"`
}

// RuntimeState is everything a runtime knows of one pod.
type RuntimeState struct {
	Sandbox    SandboxState
	Containers map[string]ContainerState // by container name; a container that was never started is missing
}

// ContainerObservation is what is known of one container: the runtime's facts, magikpod's own
// memory, and what its probes found.
type ContainerObservation struct {
	ContainerState
	// Failures counts the restarts that the backoff remembers; it falls to 0 after the container
	// has run for Policy.BackoffReset.
	Failures int `json:"failures,omitempty"`
	// Last is the attempt before this one: lastState.terminated of the status.
	Last *ContainerState `json:"last,omitempty"`
	// Waiting is why an attempt could not be made (ErrImagePull, CreateContainerConfigError, ...);
	// empty when none was made or it succeeded.
	Waiting *Waiting `json:"waiting,omitempty"`

	// Gone is true when the sandbox of the latest attempt no longer exists: init containers run
	// again in the next one. [Fold] sets it.
	Gone bool `json:"gone,omitempty"`
	// Again is true when the user asked for a fresh start after the latest attempt: how it ended
	// counts for nothing, only its number does. [Observation.Restart] sets it, the next attempt
	// clears it.
	Again bool `json:"again,omitempty"`

	Startup   ProbeState `json:"startup,omitzero"`
	Liveness  ProbeState `json:"liveness,omitzero"`
	Readiness ProbeState `json:"readiness,omitzero"`
	// Image facts for the status.
	ImageID string `json:"imageID,omitempty"`
	Image   string `json:"image,omitempty"`
}

// Waiting is why a container is not running although it should be.
type Waiting struct {
	Reason   string    `json:"reason"` // ErrImagePull, ImagePullBackOff, ErrImageNeverPull, CreateContainerConfigError, RunContainerError, ...
	Message  string    `json:"message"`
	Since    time.Time `json:"since"`
	Failures int       `json:"failures"` // attempts in a row that ended so
	// Kind is what sort of failure it was; empty: what the reason suggests.
	Kind Kind `json:"kind,omitempty"`
}

// Policy holds the durations that an administrator may change. The zero value of a field means its
// default.
type Policy struct {
	BackoffInitial time.Duration // default 10 s
	BackoffMax     time.Duration // default 300 s
	BackoffReset   time.Duration // default 10 min
}

// Observation is what is true of one pod now: facts read from the world, and the state that the
// user desires.
type Observation struct {
	Desired   Desired   `json:"wish"`
	DesiredAt time.Time `json:"wishedAt"`
	// Grace replaces terminationGracePeriodSeconds in this stop or delete; nil keeps the manifest's.
	Grace *time.Duration `json:"grace,omitempty"`
	// Finished is true once the pod has reached the phase Succeeded or Failed; it stays true until
	// the user starts the pod again.
	Finished bool         `json:"finished,omitempty"`
	Sandbox  SandboxState `json:"sandbox"`
	// Containers are the init containers, sidecars and containers, by name. The map is replaced,
	// never changed.
	Containers map[string]ContainerObservation `json:"containers,omitempty"`
	PodIPs     []netip.Addr                    `json:"podIPs,omitempty"`
	Policy     Policy                          `json:"-"`
}
