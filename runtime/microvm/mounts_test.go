package microvm

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	vmshim "github.com/magikrun/magikpod/runtime/microvm/shim"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

func TestStage(t *testing.T) {
	dir := t.TempDir()
	empty, host, config := filepath.Join(dir, "empty"), filepath.Join(dir, "host"), filepath.Join(dir, "config")
	for _, d := range []string{empty, host, config} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(empty, 0o777|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}},
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
	}}}
	c := &corev1.Container{Name: "main", TerminationMessagePath: "/dev/termination-log", VolumeMounts: []corev1.VolumeMount{
		{Name: "empty", MountPath: "/empty"}, {Name: "memory", MountPath: "/memory"}, {Name: "host", MountPath: "/host"},
		{Name: "host", MountPath: "/host-ro"}, {Name: "config", MountPath: "/config"}, {Name: "config", MountPath: "/one"},
	}}
	message := filepath.Join(dir, "message")
	got, err := stage(runtime.ContainerConfig{Pod: p, Container: c, Mounts: []runtime.Mount{
		{Source: filepath.Join(dir, "etc", "hosts"), Destination: "/etc/hosts"},
		{Source: empty, SubPath: "a/b", Destination: "/empty"},
		{SharedTmpfs: "memory", Destination: "/memory", ReadOnly: true},
		{Source: host, Destination: "/host", SubPath: "sub"},
		{Source: host, Destination: "/host-ro", ReadOnly: true},
		{Source: config, Destination: "/config", ReadOnly: true},
		{Source: config, SubPath: "key", Destination: "/one", ReadOnly: true},
		{Destination: "/data"}, // a volume of the image
		{Source: message, Destination: "/dev/termination-log"},
	}}, map[string]runtime.Tmpfs{"memory": {Name: "memory", SizeBytes: 1000, Mode: 0o777 | os.ModeSticky, GID: 7}}, true)
	if err != nil {
		t.Fatal(err)
	}
	want := []wire.Mount{
		{Kind: wire.MountCopy, Name: "etc.hosts", SubPath: "hosts"},
		{Kind: wire.MountScratch, Name: "empty", SubPath: "a/b", Mode: 0o2777, GID: uint32(os.Getgid())},
		{Kind: wire.MountTmpfs, Name: "memory", ReadOnly: true, Mode: 0o1777, GID: 7, Bytes: 1000},
		{Kind: wire.MountShare, Name: shareTag, SubPath: "host/sub"},
		{Kind: wire.MountShare, Name: shareTag, SubPath: "host.ro", ReadOnly: true},
		{Kind: wire.MountCopy, Name: "config", ReadOnly: true},
		{Kind: wire.MountCopy, Name: "config", SubPath: "key", ReadOnly: true},
		{Kind: wire.MountMessage},
	}
	if diff := cmp.Diff(want, got.mounts); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	wantCopies := []vmshim.Copy{{Volume: "etc.hosts", Source: filepath.Join(dir, "etc", "hosts")}, {Volume: "config", Source: config}}
	if diff := cmp.Diff(wantCopies, got.copies); diff != "" {
		t.Errorf("copies, each once (-want +got):\n%s", diff)
	}
	wantShares := []shared{{"host", host, false}, {"host.ro", host, true}}
	if diff := cmp.Diff(wantShares, got.shares, cmp.AllowUnexported(shared{})); diff != "" {
		t.Errorf("shares (-want +got):\n%s", diff)
	}
	if got.messageFile != message || len(got.spec) != 9 || got.spec[7].Source != "" || got.spec[8].Source != wire.MountSource(7) {
		t.Errorf("message file %s, mounts of the spec: %+v", got.messageFile, got.spec)
	}
}

// A path of no type may turn out to be what a VM cannot have.
func TestStageRefuses(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for source, want := range map[string]pod.Kind{socket: pod.Unsupported, "/dev/null": pod.Unsupported, filepath.Join(dir, "none"): pod.NotFound} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: source}}}}}}
		c := &corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "host", MountPath: "/x/"}}}
		_, err := stage(runtime.ContainerConfig{Pod: p, Container: c, Mounts: []runtime.Mount{{Source: source, Destination: "/x"}}}, nil, true)
		if pod.KindOf(err) != want {
			t.Errorf("%s: %v, want %s", source, err, want)
		}
	}
}

// TestStageCopies: without a share the VM gets images of copies, each once, and nobody may write to
// them.
func TestStageCopies(t *testing.T) {
	host := t.TempDir()
	file := filepath.Join(host, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}},
		{Name: "file", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: file}}},
	}}}
	c := &corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "host", MountPath: "/a"}, {Name: "host", MountPath: "/b"}, {Name: "file", MountPath: "/f"}}}
	config := runtime.ContainerConfig{Pod: p, Container: c, Mounts: []runtime.Mount{
		{Source: host, Destination: "/a", ReadOnly: true}, {Source: host, SubPath: "sub", Destination: "/b", ReadOnly: true}, {Source: file, Destination: "/f", ReadOnly: true},
	}}
	got, err := stage(config, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	want := []wire.Mount{{Kind: wire.MountImage, ReadOnly: true}, {Kind: wire.MountImage, SubPath: "sub", ReadOnly: true}, {Kind: wire.MountImage, SubPath: "file", ReadOnly: true}}
	if diff := cmp.Diff(want, got.mounts); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]shared{{"host", host, true}, {"file", file, true}}, got.copied, cmp.AllowUnexported(shared{})); diff != "" {
		t.Errorf("copies (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[int]string{0: "host", 1: "host", 2: "file"}, got.images); diff != "" {
		t.Errorf("which image each mount shows (-want +got):\n%s", diff)
	}
	config.Mounts[0].ReadOnly = false
	if _, err := stage(config, nil, false); pod.KindOf(err) != pod.Unsupported {
		t.Errorf("a mount to write to: %v", err)
	}
}
