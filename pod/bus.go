package pod

import (
	"time"
)

// More values that cross from the daemon to the D-Bus server.

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

// Stats are the resources that a pod uses now, read from its cgroup.
type Stats struct {
	Time       time.Time              `json:"time"`
	Pod        ResourceUse            `json:"pod"`
	Containers map[string]ResourceUse `json:"containers"`
}

// ResourceUse is what one cgroup uses. Nil (null in JSON) is what the host does not count: it lacks
// the cgroup controller.
type ResourceUse struct {
	CPUNanos         *uint64 `json:"cpuNanos"` // CPU time used so far
	MemoryBytes      *uint64 `json:"memoryBytes"`
	MemoryLimitBytes uint64  `json:"memoryLimitBytes,omitempty"` // 0: none that acts
	Processes        *uint64 `json:"processes"`                  // and threads
}

// Problem is one thing that is wrong with a manifest, or that will be ignored.
type Problem struct {
	Severity string `json:"severity"` // error or warning
	Path     string `json:"path"`     // of the field, after the document's NAMESPACE/NAME where there are several documents
	Message  string `json:"message"`
}

// NoticeKind is what a [Notice] reports.
type NoticeKind int

// The kinds of notice.
const (
	// NoticePodNew: the pod Ref was admitted.
	NoticePodNew NoticeKind = iota + 1
	// NoticePodChanged: something of its detail changed; who wants to know reads it.
	NoticePodChanged
	// NoticePodRemoved: the pod is gone. Ref is all that is left.
	NoticePodRemoved
	// NoticeJobNew, NoticeJobChanged and NoticeJobRemoved carry Job. A removed job's State is its
	// result; nothing about it follows.
	NoticeJobNew
	NoticeJobChanged
	NoticeJobRemoved
	// NoticeEvent carries Event.
	NoticeEvent
)

// Notice reports one change. It is a value that nobody modifies after it was handed out.
type Notice struct {
	Kind  NoticeKind
	Ref   Ref
	Job   JobInfo
	Event Event
}
