package pod

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/podapi"
)

// The values that cross from the daemon to the D-Bus server: plain data, so that neither package
// needs to import the other. Those that a client gets, too, are package podapi's.
type (
	// Ref names one pod.
	Ref = podapi.Ref
	// Summary is one row of a list of pods.
	Summary = podapi.Summary
	// Event is something that happened to a pod.
	Event = podapi.Event
	// JobInfo is an immutable picture of a job.
	JobInfo = podapi.JobInfo
	// JobResult is how a job ended.
	JobResult = podapi.JobResult
	// WaitMode is what a run waits for.
	WaitMode = podapi.WaitMode
	// RunOptions are the options of RunPod and CreatePod.
	RunOptions = podapi.RunOptions
	// StopOptions say how a pod is stopped, restarted or deleted.
	StopOptions = podapi.StopOptions
	// LogOptions select log lines.
	LogOptions = podapi.LogOptions
	// PullOptions are the options of PullImage.
	PullOptions = podapi.PullOptions
	// LoadOptions are the options of LoadImage.
	LoadOptions = podapi.LoadOptions
	// ImageSummary is one row of a list of images.
	ImageSummary = podapi.ImageSummary
	// ClassInfo says what one runtime class is and whether it can be used here.
	ClassInfo = podapi.ClassInfo
	// HostInfo describes the daemon and its host.
	HostInfo = podapi.HostInfo
)

// The constants of these; package podapi says what they mean.
const (
	JobDone       = podapi.JobDone
	JobFailed     = podapi.JobFailed
	JobCanceled   = podapi.JobCanceled
	JobTimeout    = podapi.JobTimeout
	FirstExecJob  = podapi.FirstExecJob
	WaitNone      = podapi.WaitNone
	WaitStarted   = podapi.WaitStarted
	WaitReady     = podapi.WaitReady
	WaitCompleted = podapi.WaitCompleted
)

// ParseWaitMode reads a mode; Invalid: it is none.
func ParseWaitMode(s string) (WaitMode, error) { return podapi.ParseWaitMode(s) }

// RefOf names the pod p.
func RefOf(p *corev1.Pod) Ref { return Ref{Namespace: p.Namespace, Name: p.Name, UID: p.UID} }

// Detail is everything about one pod.
type Detail struct {
	Summary
	Pod    *corev1.Pod // spec and status, what kubectl get -o json would print; never modified after it was handed out
	Events []Event     // the newest ones, oldest first
}
