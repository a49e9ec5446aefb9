package volume

import (
	"math"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/google/go-cmp/cmp"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

func TestEmptyDir(t *testing.T) {
	for _, tc := range []struct {
		name  string
		group *int64
		want  []string // of the volumes directory
	}{
		{"plain", nil, []string{"data drwxrwxrwx 0:0"}},
		{"fsGroup", ptr(int64(2000)), []string{"data dgrwxrwxrwx 0:2000"}},
		{"fsGroup 0", ptr(int64(0)), []string{"data dgrwxrwxrwx 0:0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, base := newManager(t, "")
			p := podWith(volume("data", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}))
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: tc.group}
			// A draft that a crash has left is no obstacle.
			must(t, os.MkdirAll(m.statePath(uid, volumesDir, ".data.new", "old"), 0o700))
			defer unix.Umask(unix.Umask(0o077))
			prepared, err := m.Prepare(t.Context(), p, Sources{})
			must(t, err)
			if diff := cmp.Diff(tc.want, listing(t, m.statePath(uid, volumesDir))); diff != "" {
				t.Error(diff)
			}
			if len(prepared.Tmpfs()) != 0 {
				t.Errorf("tmpfs: %v", prepared.Tmpfs())
			}
			for _, line := range listing(t, base)[:3] { // state, pods, UID: nobody else gets to the volume
				if want := "drwx------ 0:0"; line[len(line)-len(want):] != want {
					t.Errorf("%s is open to others", line)
				}
			}
		})
	}
}

// TestEmptyDirAgain: what containers have made of the volume stays, postgres' mode 0700 included.
func TestEmptyDirAgain(t *testing.T) {
	m, _ := newManager(t, "")
	p := podWith(volume("data", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}))
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))}
	_, err := m.Prepare(t.Context(), p, Sources{})
	must(t, err)
	dir := m.statePath(uid, volumesDir, "data")
	must(t, os.WriteFile(dir+"/file", []byte("x"), 0o600))
	must(t, os.Chown(dir, 70, 70))
	must(t, os.Chmod(dir, 0o700))
	before := listing(t, m.statePath(uid))
	_, err = m.Prepare(t.Context(), p, Sources{})
	must(t, err)
	if after := listing(t, m.statePath(uid)); !slices.Equal(before, after) {
		t.Error(cmp.Diff(before, after))
	}
}

func limited(memory string) corev1.Container {
	c := corev1.Container{Name: "c"}
	if memory != "" {
		c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return c
}

func sidecar(memory string) corev1.Container {
	c := limited(memory)
	c.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
	return c
}

func TestMemoryVolume(t *testing.T) {
	for _, tc := range []struct {
		name       string
		limit      string
		init       []corev1.Container
		containers []corev1.Container
		pod        string
		group      *int64
		want       runtime.Tmpfs
	}{
		{name: "no limit", containers: []corev1.Container{limited("")}, want: runtime.Tmpfs{Mode: os.ModeSticky | 0o777}},
		{name: "sizeLimit", limit: "1Mi", containers: []corev1.Container{limited("")}, want: runtime.Tmpfs{SizeBytes: 1 << 20, Mode: os.ModeSticky | 0o777}},
		{name: "sizeLimit 0 is none", limit: "0", containers: []corev1.Container{limited("2Mi")}, want: runtime.Tmpfs{SizeBytes: 2 << 20, Mode: os.ModeSticky | 0o777}},
		{name: "the smaller one", limit: "1Gi", containers: []corev1.Container{limited("2Mi"), limited("3Mi")}, want: runtime.Tmpfs{SizeBytes: 5 << 20, Mode: os.ModeSticky | 0o777}},
		{name: "one is not limited", containers: []corev1.Container{limited("2Mi"), limited("")}, want: runtime.Tmpfs{Mode: os.ModeSticky | 0o777}},
		{
			name: "init and sidecars", init: []corev1.Container{limited("1Mi"), sidecar("4Mi"), limited("16Mi")}, containers: []corev1.Container{limited("2Mi")},
			want: runtime.Tmpfs{SizeBytes: 20 << 20, Mode: os.ModeSticky | 0o777},
		},
		{name: "pod's own", pod: "7Mi", containers: []corev1.Container{limited("")}, want: runtime.Tmpfs{SizeBytes: 7 << 20, Mode: os.ModeSticky | 0o777}},
		{name: "overflow", containers: []corev1.Container{limited("8Ei"), limited("8Ei")}, want: runtime.Tmpfs{SizeBytes: math.MaxInt64, Mode: os.ModeSticky | 0o777}},
		{name: "fsGroup", group: ptr(int64(7)), containers: []corev1.Container{limited("")}, want: runtime.Tmpfs{Mode: os.ModeSticky | os.ModeSetgid | 0o777, GID: 7}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := New(Config{StateDir: "/nonexistent/state", RunDir: "/nonexistent/run"})
			must(t, err)
			v := volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}})
			if tc.limit != "" {
				v.EmptyDir.SizeLimit = ptr(resource.MustParse(tc.limit))
			}
			p := podWith(v)
			p.Spec.InitContainers, p.Spec.Containers = tc.init, tc.containers
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: tc.group}
			if tc.pod != "" {
				p.Spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(tc.pod)}}
			}
			prepared, err := m.Prepare(t.Context(), p, Sources{})
			must(t, err)
			tc.want.Name = "mem"
			if diff := cmp.Diff([]runtime.Tmpfs{tc.want}, prepared.Tmpfs()); diff != "" {
				t.Error(diff)
			}
		})
	}
	v := volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("-1"))}})
	m, _ := newManager(t, "")
	if _, err := m.Prepare(t.Context(), podWith(v), Sources{}); pod.KindOf(err) != pod.Invalid {
		t.Errorf("negative limit: %v", err)
	}
}

// TestTmpfsMounts: the options mean to the kernel what they say.
func TestTmpfsMounts(t *testing.T) {
	m, base := newManager(t, "")
	v := volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}})
	p := podWith(v)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))}
	prepared, err := m.Prepare(t.Context(), p, Sources{})
	must(t, err)
	must(t, os.Mkdir(base+"/mnt", 0o700))
	must(t, unix.Mount("tmpfs", base+"/mnt", "tmpfs", 0, prepared.Tmpfs()[0].Options()))
	defer unix.Unmount(base+"/mnt", unix.MNT_DETACH)
	if got, want := listing(t, base), []string{"mnt dgtrwxrwxrwx 0:2000"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(base+"/mnt", &st))
	if size := int64(st.Blocks) * st.Bsize; size != 1<<20 {
		t.Errorf("size %d", size)
	}
}
