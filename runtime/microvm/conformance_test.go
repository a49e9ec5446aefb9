package microvm_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// TestConformance checks the class against what runtime.PodManager promises: each promise with a VM
// of its own.
func TestConformance(t *testing.T) {
	runtimetest.Suite(t, conformanceEnv)
}

func conformanceEnv(t *testing.T) runtimetest.Env {
	w := newWorld(t)
	networks := 0
	return runtimetest.Env{
		Manager: w.manager,
		Image:   w.image,
		Network: func(t *testing.T) runtime.Network {
			networks++
			return w.connect(t, types.UID(fmt.Sprintf("network-%d", networks)))
		},
		Restart: func(*testing.T) runtime.PodManager {
			w.restart()
			return w.manager
		},
		Leaks: w.leftovers,
		// The directory of the host that all containers of the suite have comes by virtiofs, as a
		// hostPath does.
		Pod: func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "suite", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/suite"}}}}
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].VolumeMounts = []corev1.VolumeMount{{Name: "suite", MountPath: "/suite"}}
			}
		},
	}
}

// connect makes the network of a pod, which goes with the test.
func (w *world) connect(t *testing.T, uid types.UID) runtime.Network {
	t.Helper()
	ns, err := netsetup.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.network.Setup(t.Context(), netsetup.PodNetwork{UID: uid, Name: string(uid)}, ns); err != nil {
		ns.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := w.network.Teardown(context.Background(), uid); err != nil {
			t.Error(err)
		}
	})
	return runtime.Network{NetNS: ns}
}
