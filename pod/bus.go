package pod

import (
	"time"
)

// More values that cross from the daemon to the D-Bus server.

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
