package native

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
)

// class is what each class says of itself.
type class interface {
	// Class says what the class is and whether it can be used.
	Class() pod.ClassInfo
	// Validate is that of [runtime.PodManager].
	Validate(p *corev1.Pod) field.ErrorList
}

// Launcher is what runs in the containers' units when that is no OCI runtime. A class that differs from this one in nothing else (sandbox, units,
// logs, stop and adoption are the same) is a [Manager] with a Launcher; cmd/magikpodd joins them, because the classes do not know each other.
//
// The program that it names becomes the main process of a confined unit ([units.ContainerUnit], Jail). It tells READY=1 and STATUS=[shim.StatusStarted]
// when the container runs. If it ends before, that is a failed start, and the last error in LaunchConfig.Log says why.
type Launcher interface {
	class
	// PrepareImage does what takes long for an image that has just come, so that its first container starts quickly. It changes nothing but caches.
	PrepareImage(ctx context.Context, image runtime.Image) error
	// ForgetImages removes what was made for images that are gone.
	ForgetImages(ctx context.Context) error
	// Prepare decides how an attempt is launched. spec is what an OCI runtime would be given; launch has all but Argv and Env. What it returns is
	// written to config.json in the directory bundle. It changes nothing but caches.
	Prepare(ctx context.Context, config runtime.ContainerConfig, bundle string, spec *specs.Spec, launch *shim.LaunchConfig) (any, error)
}

// Chooser is a [Launcher] for single containers of pods of the class pod-containers.
type Chooser interface {
	Launcher
	// Asked says whether an annotation of the pod asks for it, for all of its containers or for some: which, Wants tells when the image is known.
	Asked(p *corev1.Pod) (all, some bool)
	// Wants says whether it takes the container. spec is what the OCI runtime would be given.
	Wants(config runtime.ContainerConfig, spec *specs.Spec) bool
}

// PrepareImage implements [runtime.ImagePreparer].
func (m *Manager) PrepareImage(ctx context.Context, image runtime.Image) error {
	if m.config.Launcher == nil || !m.class.Available {
		return nil
	}
	return m.config.Launcher.PrepareImage(ctx, image)
}

// ForgetImages implements [runtime.ImagePreparer].
func (m *Manager) ForgetImages(ctx context.Context) error {
	switch {
	case m.config.Launcher != nil:
		return m.config.Launcher.ForgetImages(ctx)
	case m.config.Sandboxes != nil:
		return m.config.Sandboxes.ForgetImages(ctx)
	}
	return nil
}

// launcher is who launches a container; nil: the OCI runtime.
func (m *Manager) launcher(config runtime.ContainerConfig, spec *specs.Spec) Launcher {
	switch {
	case m.config.Launcher != nil:
		return m.config.Launcher
	case m.config.Chooser != nil && m.config.Chooser.Wants(config, spec):
		return m.config.Chooser
	}
	return nil
}

// runtimeName is what stands in the records of attempts.
func (m *Manager) runtimeName(launcher Launcher) string {
	if launcher != nil {
		return launcher.Class().Name
	}
	return m.oci.name
}

// other is the class that this manager is made for; nil: its own.
func (c *Config) other() class {
	switch {
	case c.Launcher != nil:
		return c.Launcher
	case c.Sandboxes != nil:
		return c.Sandboxes
	}
	return nil
}
