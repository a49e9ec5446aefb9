package contract

import (
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// PodSummary is a pod in the answer of SummarizePods: its properties, as DescribePods has them.
type PodSummary struct {
	Namespace, Name, UID, Phase, State, RuntimeClass, Slice string
	Ready                                                   bool
	ReadyContainers, TotalContainers, Restarts              int
	CreatedUSec                                             uint64
	PodIPs                                                  []string
}

// PodRow is a pod in the answer of DescribePods.
type PodRow struct {
	Path       godbus.ObjectPath
	Properties map[string]godbus.Variant
}

// EventRow is an event in the answer of ListEvents.
type EventRow struct {
	USec                             uint64
	Type, Reason, Container, Message string
}

// ImageRow is an image in the answer of ListImages.
type ImageRow struct {
	ID         string
	References []string
	Digest     string
	Size       uint64
	Created    int64
	Pods       uint32
}

// USec is the time on the bus: microseconds since 1970, 0 for no time.
func USec(t time.Time) uint64 {
	if t.IsZero() || t.Unix() < 0 {
		return 0
	}
	return uint64(t.UnixMicro())
}

// TimeOf is the inverse of [USec].
func TimeOf(usec uint64) time.Time {
	if usec == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(min(usec, 1<<62)))
}

// FitText makes s fit for the bus, which has no text with NUL or that is no UTF-8 (D-Bus
// specification, Basic types).
func FitText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
