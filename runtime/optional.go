package runtime

import (
	"context"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
)

// Prober is a [PodManager] that makes the probes of its pods itself, where the containers are, because they are not where the daemon is.
type Prober interface {
	// Probe makes a probe once. When ok is false, message is what the kubelet says of such a failure. An error means that nothing was learned,
	// as from a container that does not run.
	Probe(ctx context.Context, ref pod.Ref, container string, p probe.Probe) (ok bool, message string, err error)
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
