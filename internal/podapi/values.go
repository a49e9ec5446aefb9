package podapi

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/errkind"
)

// Ref names one pod.
type Ref struct {
	Namespace string
	Name      string
	UID       types.UID
}

func (r Ref) String() string { return r.Namespace + "/" + r.Name }

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
	return "", errkind.Errorf(errkind.Invalid, "%q is none of none, started, ready, completed", s)
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

// HostInfo is what `magikpodctl version` and `info` print of the daemon.
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

// StopOptions say how a pod is stopped, restarted or deleted.
type StopOptions struct {
	Grace *time.Duration // replaces terminationGracePeriodSeconds; nil keeps the manifest's
	Force bool           // SIGKILL at once; a delete goes on although a step of it fails
}

// PullOptions are the options of PullImage.
type PullOptions struct {
	Always   bool   // ask the registry even when the image is present
	Platform string // OS/ARCHITECTURE[/VARIANT]; empty: the host's
}

// LoadOptions are the options of LoadImage.
type LoadOptions struct {
	Tag      string // the image's name instead of the archive's
	Platform string // OS/ARCHITECTURE[/VARIANT]; empty: the host's, and WebAssembly
}

// ImageSummary is one row of a list of images.
type ImageSummary struct {
	ID         string    `json:"id"`                 // sha256:... of the config
	References []string  `json:"references"`         // every name it has, normalised and sorted; empty when a newer image took the last one
	Digest     string    `json:"digest,omitempty"`   // sha256:... of what a registry has under the name: the multi-platform index if it was pulled from one, else the manifest
	Size       int64     `json:"size"`               // of the unpacked files, bytes; layers that images share count for each
	Created    time.Time `json:"created,omitzero"`   // zero when the image doesn't say
	Pods       int       `json:"pods"`               // how many pods use it
	Platform   string    `json:"platform,omitempty"` // OS/ARCHITECTURE[/VARIANT]; empty when the image doesn't say
}

// WinSize is the size of a terminal, in characters.
type WinSize struct{ Rows, Cols uint16 }

// The codes of a process that could not be executed, as shells have them.
const (
	ExitNotExecutable = 126
	ExitNotFound      = 127
)
