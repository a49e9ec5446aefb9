package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/testns"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
)

const uid = types.UID("0f0e0d0c-1111-4222-8333-444455556666")

var must = testutil.Must

// newManager returns a manager with both directories on a tmpfs with the options.
func newManager(t testing.TB, options string) (*Manager, string) {
	t.Helper()
	base := testns.Mount(t, options)
	m, err := New(Config{StateDir: base + "/state", RunDir: base + "/run"})
	must(t, err)
	return m, base
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: uid}, Spec: corev1.PodSpec{Volumes: volumes}}
}

func ptr[T any](v T) *T { return &v }

func volume(name string, s corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: s}
}

// listing is what is below dir: one line an entry, with type, mode and group.
func listing(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		st := info.Sys().(*syscall.Stat_t)
		lines = append(lines, fmt.Sprintf("%s %v %d:%d", rel, info.Mode(), st.Uid, st.Gid))
		return nil
	}))
	return lines
}

func TestNew(t *testing.T) {
	for _, c := range []Config{{}, {StateDir: "/a"}, {StateDir: "a", RunDir: "/b"}} {
		if _, err := New(c); pod.KindOf(err) != pod.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestUID(t *testing.T) {
	m, err := New(Config{StateDir: "/nonexistent/state", RunDir: "/nonexistent/run"})
	must(t, err)
	for _, uid := range []types.UID{"", ".", "..", "a/b", "../x", "a\x00", "a\n", types.UID(strings.Repeat("a", 200))} {
		p := podWith()
		p.UID = uid
		if _, err := m.Prepare(t.Context(), p, Sources{}); pod.KindOf(err) != pod.Invalid {
			t.Errorf("Prepare %q: %v", uid, err)
		}
		if err := m.Remove(t.Context(), uid); pod.KindOf(err) != pod.Invalid {
			t.Errorf("Remove %q: %v", uid, err)
		}
		if _, err := m.EtcFiles(uid, nil, nil, nil); pod.KindOf(err) != pod.Invalid {
			t.Errorf("EtcFiles %q: %v", uid, err)
		}
		if _, err := m.TerminationMessage(uid, "c", 0, "/m"); pod.KindOf(err) != pod.Invalid {
			t.Errorf("TerminationMessage %q: %v", uid, err)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	m, base := newManager(t, "")
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	for _, tc := range []struct {
		name string
		pod  *corev1.Pod
		kind pod.Kind
		want string
	}{
		{"volume name", podWith(volume("../x", empty)), pod.Invalid, "DNS label"},
		{"two of a name", podWith(volume("a", empty), volume("a", empty)), pod.Invalid, "two of that name"},
		{"another type", podWith(volume("a", empty), volume("n", corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}})), pod.Unsupported, `volume "n"`},
		{"medium", podWith(volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages"}})), pod.Unsupported, "HugePages"},
		{"fsGroup", func() *corev1.Pod {
			p := podWith(volume("a", empty))
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(-2))}
			return p
		}(), pod.Invalid, "fsGroup"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := m.Prepare(t.Context(), tc.pod, Sources{})
			if pod.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v: %v; want %v: ...%s...", pod.KindOf(err), err, tc.kind, tc.want)
			}
			if left := listing(t, base); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("deleted"))
	if _, err := m.Prepare(ctx, podWith(volume("a", empty)), Sources{}); pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("ended context: %v", err)
	}
}

// bigSources have a ConfigMap and a Secret of half a MiB each.
func bigSources() Sources {
	big := []byte(strings.Repeat("x", 1<<19))
	return Sources{
		ConfigMap: func(string) (*corev1.ConfigMap, error) {
			return &corev1.ConfigMap{BinaryData: map[string][]byte{"big": big, "also": []byte("x")}}, nil
		},
		Secret: func(string) (*corev1.Secret, error) {
			return &corev1.Secret{Data: map[string][]byte{"big": big}}, nil
		},
	}
}

// TestDiskFull: on a full file system nothing is left, and what was there before stays.
func TestDiskFull(t *testing.T) {
	m, base := newManager(t, "size=256k")
	p := podWith(
		volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		volume("c", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}),
	)
	_, err := m.Prepare(t.Context(), p, bigSources())
	if pod.KindOf(err) != pod.Exhausted || !strings.Contains(err.Error(), `volume "c"`) {
		t.Errorf("ConfigMap: %v: %v", pod.KindOf(err), err)
	}
	if left := listing(t, base); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	s := podWith(volume("s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}))
	if _, err := m.Prepare(t.Context(), s, bigSources()); pod.KindOf(err) != pod.Exhausted {
		t.Errorf("Secret: %v: %v", pod.KindOf(err), err)
	}
	if left := listing(t, base); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := m.EtcFiles(uid, make([]byte, 1<<20), nil, nil); pod.KindOf(err) != pod.Exhausted {
		t.Errorf("EtcFiles: %v", err)
	}
	if left := listing(t, base); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// An update that does not fit leaves the old content.
	small := Sources{ConfigMap: func(string) (*corev1.ConfigMap, error) {
		return &corev1.ConfigMap{Data: map[string]string{"key": "old"}}, nil
	}}
	_, err = m.Prepare(t.Context(), p, small)
	must(t, err)
	before := listing(t, base)
	if _, err := m.Prepare(t.Context(), p, bigSources()); pod.KindOf(err) != pod.Exhausted {
		t.Errorf("update: %v", err)
	}
	if after := listing(t, base); !slices.Equal(before, after) {
		t.Errorf("a failed update left\n%v\nand before there was\n%v", after, before)
	}
	if data, err := os.ReadFile(m.statePath(uid, volumesDir, "c", "key")); err != nil || string(data) != "old" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestInodesFull: inodes run out as well as bytes, at any step.
func TestInodesFull(t *testing.T) {
	volumes := []corev1.Volume{
		volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		volume("c", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}),
		volume("s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}),
	}
	volumes[1].ConfigMap.Name = "c"
	succeeded := false
	for inodes := 2; inodes < 40 && !succeeded; inodes++ {
		m, base := newManager(t, fmt.Sprintf("nr_inodes=%d", inodes))
		_, err := m.Prepare(t.Context(), podWith(volumes...), bigSources())
		if succeeded = err == nil; succeeded {
			continue
		}
		if pod.KindOf(err) != pod.Exhausted {
			t.Errorf("%d inodes: %v: %v", inodes, pod.KindOf(err), err)
		}
		if left := listing(t, base); len(left) > 0 {
			t.Errorf("%d inodes: left: %v", inodes, left)
		}
	}
	if !succeeded {
		t.Error("it never succeeded")
	}
}

func TestParallel(t *testing.T) {
	m, base := newManager(t, "")
	src := bigSources()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			p := podWith(
				volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
				volume("s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}),
			)
			p.UID = types.UID(fmt.Sprintf("pod-%d", i))
			for range 5 {
				if _, err := m.Prepare(t.Context(), p, src); err != nil {
					t.Errorf("Prepare: %v", err)
				}
				if _, err := m.EtcFiles(p.UID, []byte("h"), []byte("n"), []byte("r")); err != nil {
					t.Errorf("EtcFiles: %v", err)
				}
				if err := m.Remove(t.Context(), p.UID); err != nil {
					t.Errorf("Remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if left := listing(t, base); len(left) != 4 { // state, state/pods, run, run/pods
		t.Errorf("left: %v", left)
	}
}

// TestRemove: a container has done its worst to its volume.
func TestRemove(t *testing.T) {
	m, base := newManager(t, "")
	victim := filepath.Join(base, "victim")
	must(t, os.MkdirAll(victim+"/dir", 0o755))
	p := podWith(
		volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		volume("s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}),
		volume("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: victim}}),
	)
	_, err := m.Prepare(t.Context(), p, bigSources())
	must(t, err)
	_, err = m.EtcFiles(uid, []byte("h"), []byte("n"), []byte("r"))
	must(t, err)
	_, err = m.TerminationMessage(uid, "c", 0, "/m")
	must(t, err)
	dir := m.statePath(uid, volumesDir, "a")
	must(t, os.Symlink(victim, dir+"/link"))
	must(t, os.MkdirAll(dir+"/closed/deep", 0o755))
	must(t, os.Chmod(dir+"/closed", 0))
	must(t, os.Chmod(dir, 0))
	must(t, os.WriteFile(m.statePath(uid, "pod.json"), nil, 0o600))

	must(t, os.Mkdir(dir+"/mnt", 0o755))
	must(t, unix.Mount(victim, dir+"/mnt", "", unix.MS_BIND, ""))
	if err := m.Remove(t.Context(), uid); pod.KindOf(err) != pod.Conflict || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("with a mount: %v", err)
	}
	must(t, unix.Unmount(dir+"/mnt", 0))
	for range 2 {
		must(t, m.Remove(t.Context(), uid))
	}
	want := []string{"run", "run/pods", "state", "state/pods", "state/pods/" + string(uid), "state/pods/" + string(uid) + "/pod.json", "victim", "victim/dir"}
	var got []string
	for _, line := range listing(t, base) {
		name, _, _ := strings.Cut(line, " ")
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
}

func TestRemoveEndsWithContext(t *testing.T) {
	m, _ := newManager(t, "")
	_, err := m.Prepare(t.Context(), podWith(volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})), Sources{})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Remove(ctx, uid); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("got %v: %v", pod.KindOf(err), err)
	}
}
