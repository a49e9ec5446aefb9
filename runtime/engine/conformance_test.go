package native

import (
	"context"
	"testing"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
	"github.com/magikrun/magikpod/units"
)

// TestConformance holds this class, with each OCI runtime, to what runtime.PodManager promises.
func TestConformance(t *testing.T) {
	onSystemd(t)
	for _, kind := range ociKinds {
		t.Run(kind.name, func(t *testing.T) {
			if lookPath(kind.name) == "" {
				t.Skipf("%s is not installed", kind.name)
			}
			runtimetest.Suite(t, func(t *testing.T) runtimetest.Env { return conformanceEnv(t, kind.name) })
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
