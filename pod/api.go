package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The values that cross from the daemon to the D-Bus server: plain data, so that neither package
// needs to import the other.

// Summary is one row of a list of pods.
type Summary struct {
	Ref
	Phase    string // Pending, Running, Succeeded, Failed, Unknown
	State    string // for people: Running, Completed, CrashLoopBackOff, Stopped, Terminating, ... (the STATUS column of kubectl get pods)
	Class    string
	Ready    int // containers that are ready (sidecars count, as in kubectl)
	Total    int
	Restarts int
	IPs      []string
	Created  time.Time
	Slice    string
}

// Detail is everything about one pod.
type Detail struct {
	Summary
	Pod    *corev1.Pod // spec and status, what kubectl get -o json would print; never modified after it was handed out
	Events []Event     // the newest ones, oldest first
}

// Event is something that happened to a pod, as kubectl describe would list it.
type Event struct {
	Time      time.Time `json:"time"`
	Type      string    `json:"type"` // Normal or Warning
	Reason    string    `json:"reason"`
	Object    Ref       `json:"object"`
	Container string    `json:"container,omitempty"`
	Message   string    `json:"message"`
}

// JobResult is how a job ended: systemd's words where they fit.
type JobResult string

// The results of a job.
const (
	JobDone     JobResult = "done"
	JobFailed   JobResult = "failed"
	JobCanceled JobResult = "canceled"
	JobTimeout  JobResult = "timeout"
)

// JobInfo is an immutable picture of a job.
type JobInfo struct {
	ID       uint32
	Kind     string // run, create, start, stop, restart, delete, pull, exec
	Owner    string // the client on the bus that asked for it; "": none did
	Objects  []string
	Progress string // for people, one line
	Fraction float64
	State    string   // running, or a JobResult
	Err      error    // why it has failed; while it runs: what it has met with last, and tries again
	Warnings []string // what of a manifest is not honoured, one line each
	Output   []string // what the job made, one entry a line: NAMESPACE/NAME for pods, references for images
	// ExitStatus is that of an exec whose process has ended, or could not be executed (126, 127).
	ExitStatus *int
}

// FirstExecJob is the number of the first exec job. Those of all other jobs lie below.
const FirstExecJob = uint32(1 << 31)

// WaitMode is what a run waits for.
type WaitMode string

// The modes. [WaitCompleted] is for pods that end; a pod that ends badly fails the run then.
const (
	WaitNone      WaitMode = "none"
	WaitStarted   WaitMode = "started"
	WaitReady     WaitMode = "ready"
	WaitCompleted WaitMode = "completed"
)

// ParseWaitMode reads a mode; Invalid: it is none.
func ParseWaitMode(s string) (WaitMode, error) {
	switch m := WaitMode(s); m {
	case WaitNone, WaitStarted, WaitReady, WaitCompleted:
		return m, nil
	}
	return "", Errorf(Invalid, "%q is none of none, started, ready, completed", s)
}

// RunOptions are the options of RunPod and CreatePod.
type RunOptions struct {
	Namespace string        // replaces "" in the manifest; a manifest that names another one is invalid
	Replace   bool          // delete a pod of the same name first
	Wait      WaitMode      // when the job ends; empty: WaitStarted
	Timeout   time.Duration // of the job; 0: the configured default
	NoStart   bool          // create only
}

// LogOptions select log lines.
type LogOptions struct {
	Container  string
	Follow     bool
	Previous   bool
	Tail       int // -1: all
	Since      time.Time
	Timestamps bool
}

// ClassInfo says what one runtime class is and whether it can be used here.
type ClassInfo struct {
	Name      string
	Available bool
	Reason    string // why it is not available, or what it uses (crun 1.21)
}

// VersionInfo is what `magikpodctl version` and `info` print of the daemon.
type HostInfo struct {
	Version    string
	GoVersion  string
	OS         string
	Kernel     string
	Arch       string
	Systemd    string
	Cgroups    string // the controllers that magikpod.slice can use, space separated
	Unenforced string `json:",omitempty"` // the limits that this host cannot enforce, and why; empty: it enforces all
	OCIRuntime string
	LogDriver  string
	Pods       int
	Images     int
	StateDir   string
	RunDir     string
	BootID     string
	PID        int
}
