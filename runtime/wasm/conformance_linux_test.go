package wasm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// TestConformance checks the class against what runtime.PodManager promises. What it cannot show,
// WebAssembly has not: signals that are handled, second processes, /proc.
func TestConformance(t *testing.T) {
	t.Run("wazero", func(t *testing.T) {
		runtimetest.Suite(t, func(t *testing.T) runtimetest.Env {
			w := newWorld(t)
			return runtimetest.Env{
				Manager: w.manager, Image: w.image, Modules: true,
				Restart: func(*testing.T) runtime.PodManager {
					w.restart()
					return w.manager
				},
				Leaks: w.left,
			}
		})
	})
}

// left lists what is left of pods.
func (w *world) left() []string {
	var left []string
	for _, dir := range []string{w.run + "/pods", w.state + "/pods"} {
		list, _ := os.ReadDir(dir) // a missing one has nothing
		for _, entry := range list {
			left = append(left, filepath.Join(dir, entry.Name()))
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), w.run+"/") {
		left = append(left, "mounts on the host")
	}
	return left
}

// TestPreview1: what WASI preview 1 offers, from C, in a container.
func TestPreview1(t *testing.T) {
	w := newWorld(t)
	volume := t.TempDir()
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"/data", "/tmp"} { // a volume, and the container's own layer
		p := w.pod("")
		c := &p.Spec.Containers[0]
		c.Command, c.Args = []string{"/preview1.wasm"}, []string{place, "two words", "ü"}
		w.create(p, nil)
		mount := []runtime.Mount{{Source: volume, Destination: "/data"}, {Destination: "/tmp"}}
		config := runtime.ContainerConfig{Pod: p, Container: c, Image: w.image, Mounts: mount, Env: []runtime.EnvVar{{Name: "COLOUR", Value: "blue = green"}}}
		if err := w.manager.RunContainer(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		state, log := w.await(p, "a", pod.ContainerExited), w.log(p, "a", 0)
		if state.ExitCode != 0 || strings.Contains(log, "FAILED") || strings.Count(log, "ok ") != 8 || !strings.Contains(log, "to stderr") {
			t.Errorf("in %s: %+v, log:\n%s", place, state, log)
		}
	}
}
