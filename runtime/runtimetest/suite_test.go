package runtimetest

import (
	"testing"

	"github.com/magikrun/magikpod/runtime"
)

// fakeEnv is a host for the fake.
func fakeEnv(t *testing.T) Env {
	fake := New()
	current := fake
	t.Cleanup(func() {
		for _, problem := range append(fake.Problems(), current.Problems()...) {
			t.Errorf("the suite breaks the rules of the interface: %s", problem)
		}
	})
	return Env{
		Manager: fake,
		Behave:  fake.Behave,
		Restart: func(*testing.T) runtime.PodManager {
			current = fake.Restart()
			return current
		},
		Leaks: fake.Leaks,
	}
}

func TestSuite(t *testing.T) { Suite(t, fakeEnv) }
