package runtime

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// Prober is a [PodManager] that makes the probes of its pods itself, where the containers are, because they are not where the daemon is.
type Prober interface {
	// Probe makes a probe once. When ok is false, message is what the kubelet says of such a failure. An error means that nothing was learned,
	// as from a container that does not run.
	Probe(ctx context.Context, ref pod.Ref, container string, p Probe) (ok bool, message string, err error)
}

// Probe is one question that a probe asks. Exactly one of Exec, HTTP and TCP is set.
type Probe struct {
	Exec []string // a command; its exit code 0 is success
	HTTP *HTTPProbe
	TCP  *TCPProbe
	// Timeout is positive. A probe that takes longer has failed.
	Timeout time.Duration
}

// HTTPProbe asks for a page; a status from 200 to 399 is success.
type HTTPProbe struct {
	Scheme  string // http or https
	Host    string
	Port    int
	Path    string // perhaps with a query
	Headers []corev1.HTTPHeader
}

// TCPProbe connects.
type TCPProbe struct {
	Host string
	Port int
}

// Freezer is a [PodManager] whose containers somebody else can freeze.
type Freezer interface {
	// Frozen says whether all processes of a container are held.
	Frozen(ref pod.Ref, container string) bool
}

// StatsReader is a [PodManager] whose containers have no cgroups on the host.
type StatsReader interface {
	// ContainerStats reads what the running containers of a pod use, by their names.
	ContainerStats(ctx context.Context, ref pod.Ref) (map[string]pod.ResourceUse, error)
}
