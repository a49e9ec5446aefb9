package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// attempt is one attempt at a container before it runs: all that is decided, nothing that is done.
type attempt struct {
	config runtime.ContainerConfig
	record attemptRecord
	place  runtime.Attempt
	launch runtime.Launch
}

// prepare decides everything about an attempt, and changes nothing. Errors are Invalid or
// Unsupported when the manifest, the image or the host is to blame; Unavailable when a holder of
// the sandbox is not up.
func (m *Manager) prepare(ctx context.Context, s *sandbox, config runtime.ContainerConfig) (*attempt, error) {
	name := config.Container.Name
	fail := func(err error, fallback pod.Kind) (*attempt, error) {
		return nil, pod.Errorf(pod.KindOr(err, fallback), "cannot run container %q: %w", name, err)
	}
	if config.LogPath != "" && !filepath.IsLocal(config.LogPath) {
		return fail(pod.Errorf(pod.Invalid, "its log %q is not in the pod's log directory", config.LogPath), pod.Invalid)
	}
	if err := m.awaitNamespaces(ctx, s); err != nil {
		return fail(err, pod.Internal)
	}
	if err := m.awaitReady(ctx, s); err != nil {
		return fail(err, pod.Unavailable)
	}
	if err := m.findPodPID(ctx, s); err != nil {
		return fail(err, pod.Internal)
	}
	bundle := filepath.Join(s.dir, containersName, name)
	a := &attempt{
		config: config,
		place: runtime.Attempt{
			ID: newID(), Bundle: bundle, Log: filepath.Join(bundle, runtimeLog), PIDFile: filepath.Join(bundle, pidName),
			Layer: filepath.Join(m.layersDir(s.ref.UID), name), Cgroup: units.SlicePath(s.names.Slice) + "/" + s.unit(name),
			StopSignal: stopSignal(config.Container, config.Image.Config),
		},
	}
	var err error
	if a.launch, err = m.runtime.Prepare(ctx, m.view(s), a.place, config); err != nil {
		return nil, err
	}
	a.record = attemptRecord{
		Container: name, Attempt: config.Attempt, ID: a.place.ID, Grace: grace(config.Pod), Signal: int(a.place.StopSignal), StopAfter: config.StopAfter,
		Runtime: a.launch.Runtime, OwnPID: a.launch.OwnPID, Traces: a.launch.Traces,
	}
	return a, nil
}

// writeBundle writes the files of an attempt.
func (m *Manager) writeBundle(s *sandbox, a *attempt) error {
	if err := m.fault("write bundle"); err != nil {
		return err
	}
	if err := os.MkdirAll(a.place.Bundle, 0o700); err != nil {
		return pod.WithKind(pod.Internal, err)
	}
	s.mu.Lock()
	record := *s.containers[a.record.Container].record
	s.mu.Unlock()
	for name, file := range a.launch.Files {
		if err := atomicfile.SaveJSON(filepath.Join(a.place.Bundle, name), file); err != nil {
			return pod.Errorf(pod.Internal, "cannot write bundle: %w", err)
		}
	}
	if err := atomicfile.SaveJSON(filepath.Join(a.place.Bundle, attemptName), record); err != nil {
		return pod.Errorf(pod.Internal, "cannot write bundle: %w", err)
	}
	return nil
}

// newID is a container ID as other CRI runtimes make them: 64 hexadecimal digits.
func newID() string {
	var data [32]byte
	_, _ = rand.Read(data[:]) // never fails (crypto/rand)
	return hex.EncodeToString(data[:])
}

// grace is the pod's termination grace period; Kubernetes' default is 30 s.
func grace(p *corev1.Pod) time.Duration {
	if p.Spec.TerminationGracePeriodSeconds == nil {
		return 30 * time.Second
	}
	return time.Duration(max(*p.Spec.TerminationGracePeriodSeconds, 0)) * time.Second
}
