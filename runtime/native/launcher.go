package native

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/agent"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Launcher is what runs in the containers' units when that is no OCI runtime. A class that differs from this one in nothing else (sandbox, units,
// logs, stop and adoption are the same) is a [Manager] with a Launcher; cmd/magikpodd joins them, because the classes do not know each other.
//
// The program that it names becomes the main process of a confined unit ([units.ContainerUnit], Jail). It tells READY=1 and STATUS=[agent.StatusStarted]
// when the container runs. If it ends before, that is a failed start, and the last error in LaunchConfig.Log says why.
type Launcher interface {
	// Class says what the class is and whether it can be used.
	Class() pod.ClassInfo
	// Validate is that of [runtime.PodManager].
	Validate(p *corev1.Pod) field.ErrorList
	// Prepare decides how an attempt is launched. spec is what an OCI runtime would be given; launch has all but Argv and Env. What it returns is
	// written to config.json in the directory bundle. It changes nothing but caches.
	Prepare(ctx context.Context, config runtime.ContainerConfig, bundle string, spec *specs.Spec, launch *agent.LaunchConfig) (any, error)
}

// runtimeName is what stands in the records of attempts.
func (m *Manager) runtimeName() string {
	if m.oci == nil {
		return m.class.Name
	}
	return m.oci.name
}
