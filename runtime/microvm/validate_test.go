package microvm

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

func testPod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "init"}},
		Containers:     []corev1.Container{{Name: "main"}},
		Volumes: []corev1.Volume{
			{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}}},
		},
	}}
	for _, c := range change {
		c(p)
	}
	return p
}

// TestStopSignals: the signals that [pod.Validate] refuses are those that the proxy cannot pass on.
func TestStopSignals(t *testing.T) {
	for sig := syscall.Signal(1); sig < 32; sig++ {
		refused := sig == unix.SIGURG || sig == unix.SIGPIPE
		if why := noStopSignal(sig); (why != "") != refused {
			t.Errorf("%s: %q, want it refused: %t", unix.SignalName(sig), why, refused)
		}
	}
}

// What the host lacks is reported with the field that needs it.
func TestValidateShare(t *testing.T) {
	for _, c := range []struct {
		driver vmm.Driver
		want   string
	}{
		{vmm.QEMU{}, "spec.volumes[1].hostPath: Forbidden: virtiofsd is not installed: a VM gets a copy, and all mounts of the volume must be readOnly"},
	} {
		for _, readOnly := range []bool{true, false} {
			mounted := testPod(func(p *corev1.Pod) {
				p.Spec.InitContainers[0].VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/a", ReadOnly: true}}
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/s"}, {Name: "host", MountPath: "/a", ReadOnly: readOnly}}
			})
			errs := (&Runtime{driver: c.driver}).Validate(mounted)
			if readOnly && len(errs) > 0 || !readOnly && (len(errs) != 1 || errs[0].Error() != c.want) {
				t.Errorf("%s, read-only %t: %v, want %s", c.driver.Name(), readOnly, errs, c.want)
			}
		}
	}
	without := testPod(func(p *corev1.Pod) { p.Spec.Volumes = slices.Delete(p.Spec.Volumes, 1, 2) })
	if errs := (&Runtime{driver: vmm.QEMU{}}).Validate(without); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestValidateImages: more images than disks need the share.
func TestValidateImages(t *testing.T) {
	with := func(images int) *corev1.Pod {
		return testPod(func(p *corev1.Pod) {
			p.Spec.Volumes = nil
			p.Spec.InitContainers[0].Image, p.Spec.Containers[0].Image = "image-0", "image-0"
			for i := range images - 1 {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprint("c", i), Image: fmt.Sprint("image-", i+1)})
			}
		})
	}
	for _, c := range []struct {
		launcher *Runtime
		images   int
		want     string
	}{
		{&Runtime{driver: vmm.QEMU{}}, 23, ""},
		{&Runtime{driver: vmm.QEMU{}}, 24, "spec.containers: Forbidden: 24 images, and a VM of qemu has disks for 23: virtiofsd is not installed"},
		{&Runtime{driver: vmm.QEMU{}, share: "/usr/libexec/virtiofsd"}, 24, ""},
	} {
		errs := c.launcher.Validate(with(c.images))
		if c.want == "" && len(errs) > 0 || c.want != "" && (len(errs) != 1 || errs[0].Error() != c.want) {
			t.Errorf("%s, %d images: %v, want %q", c.launcher.driver.Name(), c.images, errs, c.want)
		}
		config := runtime.SandboxConfig{Pod: with(c.images), Network: runtime.Network{NetNS: os.Stdin}}
		if share := c.launcher.recordOf(runtime.Sandbox{RunDir: "/run/x"}, config).VMM.VM.Share; (share != nil) != (c.launcher.share != "") {
			t.Errorf("%s, %d images: the VM shares %v", c.launcher.driver.Name(), c.images, share)
		}
	}
}
