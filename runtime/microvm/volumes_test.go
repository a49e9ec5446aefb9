package microvm_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestVolumes: what a pod's containers see of its volumes, and what of it comes back to the host.
func TestVolumes(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.state, "volumes")
	put := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// As the atomic writer of package volume leaves it: the keys are links to the newest version.
	put("config/..v1/key", "configured", 0o440)
	for name, target := range map[string]string{"..data": "..v1", "key": "..data/key"} {
		if err := os.Symlink(target, filepath.Join(dir, "config", name)); err != nil {
			t.Fatal(err)
		}
	}
	put("host/file", "from the host", 0o644)
	hosts := put("etc/hosts", "127.0.0.1 localhost\n10.0.0.1 from-the-host\n", 0o644)
	message := put("message", "", 0o666)
	empty := filepath.Join(dir, "empty")
	if err := errors.Join(os.Mkdir(empty, 0o777), os.Chmod(empty, 0o777)); err != nil {
		t.Fatal(err)
	}

	p := w.pod(`trap 'echo the last words > /dev/termination-log; exit 9' TERM; while :; do sleep 0.1; done`, "sleep 1000")
	p.Spec.Volumes = []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
		{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(dir, "host")}}},
	}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].TerminationMessagePath = "/dev/termination-log"
		p.Spec.Containers[i].VolumeMounts = []corev1.VolumeMount{
			{Name: "config", MountPath: "/config"}, {Name: "config", MountPath: "/key"}, {Name: "empty", MountPath: "/empty"}, {Name: "memory", MountPath: "/memory"},
			{Name: "host", MountPath: "/host"}, {Name: "host", MountPath: "/host-ro"}, {Name: "host", MountPath: "/host-file"},
		}
	}
	mounts := []runtime.Mount{
		{Source: filepath.Join(dir, "config"), Destination: "/config", ReadOnly: true},
		{Source: filepath.Join(dir, "config"), SubPath: "key", Destination: "/key", ReadOnly: true},
		{Source: empty, Destination: "/empty"}, {SharedTmpfs: "memory", Destination: "/memory"},
		{Source: filepath.Join(dir, "host"), Destination: "/host"},
		{Source: filepath.Join(dir, "host"), Destination: "/host-ro", ReadOnly: true},
		{Source: filepath.Join(dir, "host"), SubPath: "file", Destination: "/host-file"},
		{Source: hosts, Destination: "/etc/hosts"},
	}
	w.create(p, runtime.Tmpfs{Name: "memory", SizeBytes: 8 << 20, Mode: 0o777 | os.ModeSticky})
	for i, name := range []string{"a", "b"} {
		own := mounts
		if i == 0 {
			own = append(mounts[:len(mounts):len(mounts)], runtime.Mount{Source: message, Destination: "/dev/termination-log"})
		}
		if err := w.attempt(p, name, 0, own...); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ container, script, want string }{
		{"a", "cat /config/key /key", "configuredconfigured"},
		{"a", "(echo x > /config/key) 2>/dev/null || echo refused", "refused"},
		{"a", "stat -c %a /config/..v1/key", "440"},
		{"a", "grep -c from-the-host /etc/hosts; echo own >> /etc/hosts && echo written", "1\nwritten"},
		{"a", "echo shared > /empty/x; echo memory > /memory/x; stat -c %a /empty /memory", "777\n1777"},
		{"b", "cat /empty/x /memory/x; df -k /memory | tail -n 1 | awk '{print $2}'", "shared\nmemory\n8192"},
		{"a", "cat /host/file /host-file", "from the hostfrom the host"},
		{"a", "echo from the VM > /host/new; (echo no > /host-ro/new2) 2>/dev/null || echo refused", "refused"},
		{"b", "cat /host/new /host-ro/new", "from the VM\nfrom the VM"},
	} {
		if text, _ := w.exec(p, c.container, c.script); !strings.HasSuffix(strings.TrimSpace(text), c.want) {
			t.Errorf("%s: %s\n= %q, want %q", c.container, c.script, text, c.want)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "host", "new")); err != nil || string(data) != "from the VM\n" {
		t.Errorf("what the container has written to the host: %q, %v", data, err)
	}
	if data, err := os.ReadFile(hosts); err != nil || strings.Contains(string(data), "own") {
		t.Errorf("the host's own copy of /etc/hosts has changed: %q, %v", data, err)
	}
	if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), "a", patience); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(message); err != nil || string(data) != "the last words\n" {
		t.Errorf("the termination message: %q, %v", data, err)
	}
	if err := w.attempt(p, "a", 1, mounts...); err != nil {
		t.Fatal(err)
	}
	if text, _ := w.exec(p, "a", "cat /empty/x; ls /host"); text != "shared\nfile\nnew\n" {
		t.Errorf("the next attempt sees %q", text)
	}
}

// A second VM of the pod, in the place of one that has died, has the emptyDir of the first.
func TestVolumesOutliveVM(t *testing.T) {
	w := newWorld(t)
	empty := filepath.Join(w.state, "empty")
	if err := os.Mkdir(empty, 0o777); err != nil {
		t.Fatal(err)
	}
	p := w.pod("sleep 1000")
	p.Spec.Volumes = []corev1.Volume{{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "empty", MountPath: "/empty"}}
	mount := runtime.Mount{Source: empty, Destination: "/empty"}
	w.up(p, mount)
	if text, status := w.exec(p, "a", "echo kept > /empty/x; echo layer > /x; sync"); status.Code != 0 {
		t.Fatal(text)
	}
	if _, err := w.manager.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.network.Teardown(t.Context(), p.UID); err != nil {
		t.Fatal(err)
	}
	w.create(p)
	if err := w.attempt(p, "a", 1, mount); err != nil {
		t.Fatal(err)
	}
	if text, _ := w.exec(p, "a", "cat /empty/x; ls /x 2>/dev/null"); text != "kept\n" {
		t.Errorf("the second VM has %q", text)
	}
}

// TestHostPathCopies: without virtiofsd a VM has the host's directories and files as it found them,
// to read.
func TestHostPathCopies(t *testing.T) {
	needsHost(t)
	if daemon, err := vmm.FindVirtiofsd(); err == nil {
		if err := unix.Mount("/dev/null", daemon, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(daemon, 0); err != nil {
				t.Error(err)
			}
		})
	}
	w := newWorld(t)
	if class := w.manager.Class(); !strings.Contains(class.Reason, "hostPath as a copy to read: virtiofsd is not installed") {
		t.Errorf("the class: %+v", class)
	}
	dir := filepath.Join(w.state, "host")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(text string) {
		t.Helper()
		for _, name := range []string{"file", "sub/file"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("first")
	if err := os.Chown(filepath.Join(dir, "file"), 12, 34); err != nil {
		t.Fatal(err)
	}
	p := w.pod("sleep 1000", "sleep 1000")
	p.Spec.Volumes = []corev1.Volume{
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}},
		{Name: "one", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(dir, "file")}}},
	}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].VolumeMounts = []corev1.VolumeMount{
			{Name: "host", MountPath: "/host", ReadOnly: true}, {Name: "host", MountPath: "/sub", SubPath: "sub", ReadOnly: true}, {Name: "one", MountPath: "/one", ReadOnly: true},
		}
	}
	mounts := []runtime.Mount{
		{Source: dir, Destination: "/host", ReadOnly: true}, {Source: dir, SubPath: "sub", Destination: "/sub", ReadOnly: true},
		{Source: filepath.Join(dir, "file"), Destination: "/one", ReadOnly: true},
	}
	see := func(name, want string) {
		t.Helper()
		text, _ := w.exec(p, name, "cat /host/file /sub/file /one; stat -c %u:%g:%a /host/file; (echo x > /host/file) 2>/dev/null || echo refused")
		if want = strings.Repeat(want, 3) + "12:34:640\nrefused\n"; text != want {
			t.Errorf("container %s sees %q, want %q", name, text, want)
		}
	}
	w.create(p)
	for i, name := range []string{"a", "b"} {
		if i == 1 {
			put("second")
			w.restart()
		}
		if err := w.attempt(p, name, 0, mounts...); err != nil {
			t.Fatal(err)
		}
	}
	see("a", "first")
	see("b", "first") // the pod's containers agree
	if _, err := w.manager.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.state, "pods", "*", "vm", "copies")); len(left) > 0 {
		t.Errorf("copies outlive their VM: %v", left)
	}
	if err := w.network.Teardown(t.Context(), p.UID); err != nil {
		t.Fatal(err)
	}
	w.create(p)
	if err := w.attempt(p, "a", 1, mounts...); err != nil {
		t.Fatal(err)
	}
	see("a", "second")
	mounts[0].ReadOnly = false
	if err := w.attempt(p, "b", 1, mounts...); err == nil || !strings.Contains(err.Error(), "can only be mounted read-only") {
		t.Errorf("a mount to write to: %v", err)
	}
}
