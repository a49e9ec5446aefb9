package microvm

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

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

func TestValidate(t *testing.T) {
	yes, no := true, false
	bidirectional, into := corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer
	socket, device, directory := corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathDirectory
	localhost := "profile"
	stopBy := func(signal corev1.Signal) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{StopSignal: &signal} }
	}
	for _, c := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string // path and a part of the reason; empty: it is accepted
	}{
		{"plain", func(*corev1.Pod) {}, ""},
		{"shared processes", func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = &yes }, ""},
		{"any sysctl", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "vm.max_map_count", Value: "300000"}}}
		}, ""},
		{"privileged", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes} }, ""},
		{"directory", func(p *corev1.Pod) { p.Spec.Volumes[1].HostPath.Type = &directory }, ""},
		{"hostNetwork", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "spec.hostNetwork: Forbidden: a machine has a network of its own"},
		{"hostPID", func(p *corev1.Pod) { p.Spec.HostPID = true }, "spec.hostPID: Forbidden"},
		{"hostIPC", func(p *corev1.Pod) { p.Spec.HostIPC = true }, "spec.hostIPC: Forbidden"},
		{"hostUsers", func(p *corev1.Pod) { p.Spec.HostUsers = &no }, "spec.hostUsers: Forbidden"},
		{"os", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, `spec.os.name: Unsupported value: "windows"`},
		{"socket", func(p *corev1.Pod) { p.Spec.Volumes[1].HostPath.Type = &socket }, "spec.volumes[1].hostPath.type: Forbidden: nobody listens"},
		{"device", func(p *corev1.Pod) { p.Spec.Volumes[1].HostPath.Type = &device }, "spec.volumes[1].hostPath.type: Forbidden: the host's devices"},
		{"bidirectional", func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/x", MountPropagation: &bidirectional}}
		}, "spec.containers[0].volumeMounts[0].mountPropagation: Forbidden"},
		{"host to container", func(p *corev1.Pod) {
			p.Spec.InitContainers[0].VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/x", MountPropagation: &into}}
		}, "spec.initContainers[0].volumeMounts[0].mountPropagation: Forbidden"},
		{"tty", func(p *corev1.Pod) { p.Spec.Containers[0].TTY = true }, "spec.containers[0].tty: Forbidden"},
		{"block", func(p *corev1.Pod) { p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{}} }, "spec.containers[0].volumeDevices[0]: Forbidden"},
		{"stop signal", stopBy("SIGRTMIN+3"), ""},
		{"first real-time signal", stopBy("SIGRTMIN"), ""},
		{"stop by kill", stopBy("SIGKILL"), ""},
		{"stop signal of a broken pipe", stopBy("SIGPIPE"), "spec.containers[0].lifecycle.stopSignal: Forbidden: the process that stands in"},
		{"stop signal of a socket", stopBy("SIGURG"), "spec.containers[0].lifecycle.stopSignal: Forbidden"},
		{"seccomp", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &localhost}}
		}, "spec.securityContext.seccompProfile.type: Unsupported value"},
		{"apparmor", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost}}
		}, "spec.containers[0].securityContext.appArmorProfile.type: Unsupported value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &Launcher{driver: vmm.QEMU{}, share: "/usr/libexec/virtiofsd"}
			errs := l.Validate(testPod(c.change))
			switch {
			case c.want == "" && len(errs) > 0:
				t.Error(errs.ToAggregate())
			case c.want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), c.want)):
				t.Errorf("%v, want %s", errs, c.want)
			}
		})
	}
}

// What the host lacks is told with the field that needs it.
func TestValidateShare(t *testing.T) {
	for _, c := range []struct {
		driver vmm.Driver
		want   string
	}{
		{vmm.QEMU{}, "spec.volumes[1].hostPath: Forbidden: virtiofsd is not installed: a machine gets a copy, and all mounts of the volume must be readOnly"},
		{vmm.Firecracker{}, "spec.volumes[1].hostPath: Forbidden: firecracker has no virtiofs: a machine gets a copy, and all mounts of the volume must be readOnly"},
		{vmm.Libkrun{}, "spec.volumes[1].hostPath: Forbidden: libkrun's virtiofs has the rights of a user who owns nothing on the host: the host's directories could not be used through it: a machine gets a copy, and all mounts of the volume must be readOnly"},
	} {
		for _, readOnly := range []bool{true, false} {
			mounted := testPod(func(p *corev1.Pod) {
				p.Spec.InitContainers[0].VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/a", ReadOnly: true}}
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/s"}, {Name: "host", MountPath: "/a", ReadOnly: readOnly}}
			})
			errs := (&Launcher{driver: c.driver}).Validate(mounted)
			if readOnly && len(errs) > 0 || !readOnly && (len(errs) != 1 || errs[0].Error() != c.want) {
				t.Errorf("%s, read-only %t: %v, want %s", c.driver.Name(), readOnly, errs, c.want)
			}
		}
	}
	without := testPod(func(p *corev1.Pod) { p.Spec.Volumes = slices.Delete(p.Spec.Volumes, 1, 2) })
	if errs := (&Launcher{driver: vmm.QEMU{}}).Validate(without); len(errs) > 0 {
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
		launcher *Launcher
		images   int
		want     string
	}{
		{&Launcher{driver: vmm.Firecracker{}}, 12, ""},
		{&Launcher{driver: vmm.Firecracker{}}, 14, "spec.containers: Forbidden: 14 images, and a machine of firecracker has disks for 12: firecracker has no virtiofs"},
		{&Launcher{driver: vmm.QEMU{}}, 23, ""},
		{&Launcher{driver: vmm.QEMU{}}, 24, "spec.containers: Forbidden: 24 images, and a machine of qemu has disks for 23: virtiofsd is not installed"},
		{&Launcher{driver: vmm.QEMU{}, share: "/usr/libexec/virtiofsd"}, 24, ""},
		{&Launcher{driver: vmm.Libkrun{}}, 100, ""},
	} {
		errs := c.launcher.Validate(with(c.images))
		if c.want == "" && len(errs) > 0 || c.want != "" && (len(errs) != 1 || errs[0].Error() != c.want) {
			t.Errorf("%s, %d images: %v, want %q", c.launcher.driver.Name(), c.images, errs, c.want)
		}
		config := runtime.SandboxConfig{Pod: with(c.images), Network: runtime.Network{NetNS: os.Stdin}}
		if share := c.launcher.recordOf(runtime.Machine{RunDir: "/run/x"}, config).VMM.VM.Share; (share != nil) != (c.launcher.share != "") {
			t.Errorf("%s, %d images: the machine shares %v", c.launcher.driver.Name(), c.images, share)
		}
	}
}
