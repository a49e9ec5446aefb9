package engine

import (
	"context"
	"os/exec"
	"testing"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
	"github.com/magikrun/magikpod/units"
)

// TestConformance checks pod-containers, with each OCI runtime, against what runtime.PodManager
// promises.
func TestConformance(t *testing.T) {
	onSystemd(t)
	for _, name := range ociRuntimes {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("%s is not installed", name)
			}
			runtimetest.Suite(t, func(t *testing.T) runtimetest.Env { return conformanceEnv(t, name) })
		})
	}
}

func conformanceEnv(t *testing.T, runtimeName string) runtimetest.Env {
	var next *Manager
	t.Cleanup(func() { // after checkClean, which uses it
		if next != nil {
			next.Close()
			next.config.Units.Close()
		}
	})
	w := newWorld(t, runtimeName, nil)
	return runtimetest.Env{
		Manager: w.Manager,
		Image:   w.image,
		Restart: func(t *testing.T) runtime.PodManager {
			// The daemon's connection to systemd ends with it, and so does its hold on the units.
			config := w.config
			w.Close()
			config.Units.Close()
			var err error
			if config.Units, err = units.Connect(context.Background()); err != nil {
				t.Fatal(err)
			}
			if next, err = New(context.Background(), config); err != nil {
				t.Fatal(err)
			}
			w.Manager = next
			return next
		},
		Leaks: func() []string {
			if left := w.leftovers(); left != "" {
				return []string{left}
			}
			return nil
		},
	}
}
