package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/testns"
	"github.com/magikrun/magikpod/pod"
)

// sources answer with these objects, by name.
func sources(configMaps map[string]*corev1.ConfigMap, secrets map[string]*corev1.Secret) Sources {
	return Sources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			if cm := configMaps[name]; cm != nil {
				return cm, nil
			}
			return nil, pod.Errorf(pod.NotFound, "cannot find ConfigMap %q", name)
		},
		Secret: func(name string) (*corev1.Secret, error) { return secrets[name], nil },
	}
}

func configMapVolume(items ...corev1.KeyToPath) corev1.Volume {
	v := volume("config", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{Items: items}})
	v.ConfigMap.Name = "app"
	return v
}

// contents are the regular files below dir that a container sees: by their path through the links,
// with mode, group and content.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	var walk func(rel string)
	walk = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		must(t, err)
		for _, entry := range entries {
			name := filepath.Join(rel, entry.Name())
			if rel == "" && strings.HasPrefix(name, "..") {
				continue
			}
			info, err := os.Stat(filepath.Join(dir, name))
			must(t, err)
			if info.IsDir() {
				walk(name)
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			group, _ := groupOf(info)
			files[name] = fmt.Sprintf("%04o %d %s", info.Mode().Perm(), group, data)
		}
	}
	walk("")
	return files
}

func TestConfigMap(t *testing.T) {
	app := &corev1.ConfigMap{
		Data:       map[string]string{"a.conf": "A", ".hidden": "H", "empty": ""},
		BinaryData: map[string][]byte{"bin": {0xff, 0x00}},
	}
	for _, tc := range []struct {
		name   string
		volume corev1.Volume
		mode   *int32
		group  *int64
		want   map[string]string
	}{
		{"all keys", configMapVolume(), nil, nil, map[string]string{"a.conf": "0644 0 A", ".hidden": "0644 0 H", "empty": "0644 0 ", "bin": "0644 0 \xff\x00"}},
		{
			"items", configMapVolume(corev1.KeyToPath{Key: "a.conf", Path: "x/y/z"}, corev1.KeyToPath{Key: "bin", Path: "x/bin", Mode: ptr(int32(0o400))}, corev1.KeyToPath{Key: "a.conf", Path: "./again"}),
			ptr(int32(0o600)), nil, map[string]string{"x/y/z": "0600 0 A", "x/bin": "0400 0 \xff\x00", "again": "0600 0 A"},
		},
		{
			"fsGroup", configMapVolume(corev1.KeyToPath{Key: "a.conf", Path: "d/a"}, corev1.KeyToPath{Key: "bin", Path: "bin", Mode: ptr(int32(0))}),
			ptr(int32(0o400)), ptr(int64(2000)), map[string]string{"d/a": "0440 2000 A", "bin": "0440 2000 \xff\x00"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, base := newManager(t, "")
			p := podWith(tc.volume)
			p.Spec.Volumes[0].ConfigMap.DefaultMode = tc.mode
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: tc.group}
			defer unix.Umask(unix.Umask(0o077))
			var before []string
			for range 2 {
				_, err := m.Prepare(t.Context(), p, sources(map[string]*corev1.ConfigMap{"app": app}, nil))
				must(t, err)
				dir := m.statePath(uid, volumesDir, "config")
				if diff := cmp.Diff(tc.want, contents(t, dir)); diff != "" {
					t.Error(diff)
				}
				checkLayout(t, dir, tc.group)
				after := listing(t, base)
				if before != nil && !cmp.Equal(before, after) {
					t.Errorf("the same content was written again: %s", cmp.Diff(before, after))
				}
				before = after
			}
		})
	}
}

// checkLayout checks that dir is laid out as in Kubernetes and every directory can be entered by
// everybody.
func checkLayout(t *testing.T, dir string, group *int64) {
	t.Helper()
	data, err := os.Readlink(dir + "/..data")
	must(t, err)
	if !strings.HasPrefix(data, "..20") || strings.Contains(data, "/") {
		t.Errorf("..data -> %s", data)
	}
	want := "drwxr-xr-x 0:0"
	if group != nil {
		want = fmt.Sprintf("dgrwxr-xr-x 0:%d", *group)
	}
	for _, line := range append(listing(t, dir), listing(t, filepath.Dir(dir))...) {
		name, attributes, _ := strings.Cut(line, " ")
		switch {
		case strings.Contains(name, "/"):
		case attributes[0] == 'L':
			target, err := os.Readlink(dir + "/" + name)
			must(t, err)
			if name != "..data" && target != "..data/"+name {
				t.Errorf("%s -> %s", name, target)
			}
		case attributes != want:
			t.Errorf("%s, want %s", line, want)
		}
	}
}

func TestUpdate(t *testing.T) {
	m, _ := newManager(t, "")
	p := podWith(configMapVolume())
	dir := m.statePath(uid, volumesDir, "config")
	prepare := func(data map[string]string) {
		t.Helper()
		_, err := m.Prepare(t.Context(), p, sources(map[string]*corev1.ConfigMap{"app": {Data: data}}, nil))
		must(t, err)
		want := map[string]string{}
		for key, value := range data {
			want[key] = "0644 0 " + value
		}
		if diff := cmp.Diff(want, contents(t, dir)); diff != "" {
			t.Error(diff)
		}
		entries, err := os.ReadDir(dir)
		must(t, err)
		if len(entries) != len(data)+2 { // ..data and where it points to
			t.Errorf("entries: %v", entries)
		}
	}
	prepare(map[string]string{"a": "1", "b": "1"})
	old, err := os.Open(dir + "/a")
	must(t, err)
	defer old.Close()
	data, err := os.Readlink(dir + "/..data")
	must(t, err)
	prepare(map[string]string{"a": "2", "c": "2"})
	if now, _ := os.Readlink(dir + "/..data"); now == data {
		t.Error("..data was not replaced")
	}
	// A crash has left things, and the administrator has changed some.
	must(t, os.Mkdir(dir+"/..2001_left", 0o700))
	must(t, os.Symlink("x", dir+"/..data_tmp"))
	must(t, os.Symlink("x", dir+"/stale"))
	must(t, os.Remove(dir+"/a"))
	must(t, os.WriteFile(dir+"/..data/c", []byte("torn"), 0o644))
	prepare(map[string]string{"a": "2", "c": "2"})
	// One file more than there should be, which sorts first.
	must(t, os.WriteFile(dir+"/..data/0", []byte("more"), 0o644))
	must(t, os.Remove(dir+"/..data/c"))
	prepare(map[string]string{"a": "2", "c": "2"})
	// A link that points elsewhere is not trusted.
	must(t, os.Remove(dir+"/..data"))
	must(t, os.Symlink("../../../../../../etc", dir+"/..data"))
	prepare(map[string]string{"a": "2", "c": "2"})
	prepare(map[string]string{})
}

func TestSecret(t *testing.T) {
	m, base := newManager(t, "")
	v := volume("tls", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "tls"}})
	src := sources(nil, map[string]*corev1.Secret{"tls": {Data: map[string][]byte{"key": []byte("old"), "crt": []byte("c")}, StringData: map[string]string{"key": "new"}}})
	prepared, err := m.Prepare(t.Context(), podWith(v), src)
	must(t, err)
	want := map[string]string{"key": "0644 0 new", "crt": "0644 0 c"}
	if diff := cmp.Diff(want, contents(t, base+"/run/pods/"+string(uid)+"/secrets/tls")); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(base + "/state"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is on disk: %v", err)
	}
	mounts, err := prepared.Mounts(&corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "tls", MountPath: "/tls"}}})
	if err != nil || !mounts[0].ReadOnly {
		t.Errorf("%+v, %v", mounts, err)
	}
}

// TestSecretNotOnDisk: /proc stands for a file system that is not in memory.
func TestSecretNotOnDisk(t *testing.T) {
	m, base := newManager(t, "")
	must(t, os.Mkdir(base+"/run", 0o700))
	must(t, unix.Mount("proc", base+"/run", "proc", 0, ""))
	defer unix.Unmount(base+"/run", unix.MNT_DETACH)
	v := volume("tls", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "tls"}})
	_, err := m.Prepare(t.Context(), podWith(v), sources(nil, map[string]*corev1.Secret{"tls": {}}))
	if pod.KindOf(err) != pod.Unsupported || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("got %v", err)
	}
}

func TestObjectRefused(t *testing.T) {
	app := &corev1.ConfigMap{Data: map[string]string{"a": "A", "b": "B"}}
	item := func(key, path string) corev1.Volume { return configMapVolume(corev1.KeyToPath{Key: key, Path: path}) }
	key := func(key string) *corev1.ConfigMap {
		return &corev1.ConfigMap{Data: map[string]string{key: "x"}}
	}
	many := make([]corev1.KeyToPath, 9)
	for i := range many {
		many[i] = corev1.KeyToPath{Key: "big", Path: fmt.Sprint(i)}
	}
	for _, tc := range []struct {
		name   string
		volume corev1.Volume
		object *corev1.ConfigMap
		kind   pod.Kind
		want   string
	}{
		{"no object", configMapVolume(), nil, pod.NotFound, `ConfigMap "app" does not exist`},
		{"no key", item("c", "c"), app, pod.NotFound, `ConfigMap "app" has no key "c"`},
		{"both", configMapVolume(), &corev1.ConfigMap{Data: map[string]string{"a": ""}, BinaryData: map[string][]byte{"a": nil}}, pod.Invalid, `"a"`},
		{"key ..", configMapVolume(), key(".."), pod.Invalid, "key"},
		{"key .", configMapVolume(), key("."), pod.Invalid, "key"},
		{"key ..data", configMapVolume(), key("..data"), pod.Invalid, "key"},
		{"key a/b", configMapVolume(), key("a/b"), pod.Invalid, "key"},
		{"empty key", configMapVolume(), key(""), pod.Invalid, "key"},
		{"key NUL", configMapVolume(), key("a\x00"), pod.Invalid, "key"},
		{"unused key", item("a", "a"), &corev1.ConfigMap{Data: map[string]string{"a": "", "../b": ""}}, pod.Invalid, "key"},
		{"path ..", item("a", ".."), app, pod.Invalid, "path"},
		{"path a/../b", item("a", "a/../b"), app, pod.Invalid, "path"},
		{"path ../b", item("a", "../b"), app, pod.Invalid, "path"},
		{"path /b", item("a", "/b"), app, pod.Invalid, "path"},
		{"path ..data", item("a", "..data"), app, pod.Invalid, "path"},
		{"path ./..data", item("a", "./..data/x"), app, pod.Invalid, "path"},
		{"empty path", item("a", ""), app, pod.Invalid, "path"},
		{"path .", item("a", "."), app, pod.Invalid, "path"},
		{"path NUL", item("a", "a\x00"), app, pod.Invalid, "path"},
		{"long element", item("a", strings.Repeat("a", 256)), app, pod.Invalid, "too long"},
		{"long path", item("a", strings.Repeat("a/", 2100)), app, pod.Invalid, "too long"},
		{"same path", configMapVolume(corev1.KeyToPath{Key: "a", Path: "x"}, corev1.KeyToPath{Key: "b", Path: "./x"}), app, pod.Invalid, "two items"},
		{"file and directory", configMapVolume(corev1.KeyToPath{Key: "a", Path: "x"}, corev1.KeyToPath{Key: "b", Path: "x/y/z"}), app, pod.Invalid, "file and a directory"},
		{"mode", configMapVolume(corev1.KeyToPath{Key: "a", Path: "a", Mode: ptr(int32(0o1000))}), app, pod.Invalid, "mode"},
		{"negative mode", configMapVolume(corev1.KeyToPath{Key: "a", Path: "a", Mode: ptr(int32(-1))}), app, pod.Invalid, "mode"},
		{"too big", configMapVolume(), &corev1.ConfigMap{BinaryData: map[string][]byte{"a": make([]byte, pod.MaxObjectDataSize), "b": {0}}}, pod.Invalid, "1048577 bytes"},
		{"too much by items", configMapVolume(many...), &corev1.ConfigMap{BinaryData: map[string][]byte{"big": make([]byte, pod.MaxObjectDataSize)}}, pod.Invalid, "8388608 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, base := newManager(t, "")
			_, err := m.Prepare(t.Context(), podWith(tc.volume), sources(map[string]*corev1.ConfigMap{"app": tc.object}, nil))
			if pod.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v: %v; want %v: ...%s...", pod.KindOf(err), err, tc.kind, tc.want)
			}
			if left := listing(t, base); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	m, _ := newManager(t, "")
	secret := volume("s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none"}})
	if _, err := m.Prepare(t.Context(), podWith(secret), Sources{}); pod.KindOf(err) != pod.NotFound || !strings.Contains(err.Error(), `Secret "none"`) {
		t.Errorf("Secret: %v", err)
	}
	failing := Sources{ConfigMap: func(string) (*corev1.ConfigMap, error) { return nil, pod.Errorf(pod.Unavailable, "cannot read: disk") }}
	v := configMapVolume()
	v.ConfigMap.Optional = ptr(true)
	if _, err := m.Prepare(t.Context(), podWith(v), failing); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("a failing look-up is not a missing object: %v", err)
	}
}

func TestOptional(t *testing.T) {
	for _, tc := range []struct {
		name   string
		volume corev1.Volume
		object *corev1.ConfigMap
		want   map[string]string
	}{
		{"no object", configMapVolume(), nil, map[string]string{}},
		{"no object, items", configMapVolume(corev1.KeyToPath{Key: "a", Path: "a"}), nil, map[string]string{}},
		{
			"no key", configMapVolume(corev1.KeyToPath{Key: "a", Path: "a"}, corev1.KeyToPath{Key: "b", Path: "b"}),
			&corev1.ConfigMap{Data: map[string]string{"b": "B"}}, map[string]string{"b": "0644 0 B"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, _ := newManager(t, "")
			tc.volume.ConfigMap.Optional = ptr(true)
			_, err := m.Prepare(t.Context(), podWith(tc.volume), sources(map[string]*corev1.ConfigMap{"app": tc.object}, nil))
			must(t, err)
			if diff := cmp.Diff(tc.want, contents(t, m.statePath(uid, volumesDir, "config"))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzObject: whatever keys and paths are, either they are refused and nothing is made, or exactly
// that content is found in the volume and nowhere else.
func FuzzObject(f *testing.F) {
	for _, seed := range [][4]string{
		{"a", "x", "b", "y/z"}, {"a", "..", "b", "../b"}, {"..data", "", "b", ""}, {"a", "x", "b", "x/y"}, {"a", "/etc/passwd", ".b", "./..data"}, {"a", "a\x00", "-", "."},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	testns.NeedRoot(f)
	base := f.TempDir()
	m, err := New(Config{StateDir: base + "/state", RunDir: base + "/run"})
	must(f, err)
	f.Fuzz(func(t *testing.T, key1, path1, key2, path2 string) {
		defer func() {
			must(t, m.Remove(t.Context(), uid))
			must(t, os.RemoveAll(base+"/state"))
		}()
		v := configMapVolume(corev1.KeyToPath{Key: key1, Path: path1}, corev1.KeyToPath{Key: key2, Path: path2})
		if path1 == "" && path2 == "" {
			v = configMapVolume()
		}
		object := &corev1.ConfigMap{Data: map[string]string{key1: "1", key2: "2"}}
		_, err := m.Prepare(t.Context(), podWith(v), sources(map[string]*corev1.ConfigMap{"app": object}, nil))
		if err != nil {
			if kind := pod.KindOf(err); kind != pod.Invalid {
				t.Errorf("%v: %v", kind, err)
			}
			if _, err := os.Stat(base + "/state"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something was left: %v", err)
			}
			return
		}
		dir := m.statePath(uid, volumesDir, "config")
		want := map[string]string{}
		for _, item := range v.ConfigMap.Items {
			want[filepath.Clean(item.Path)] = object.Data[item.Key]
		}
		if len(v.ConfigMap.Items) == 0 {
			want = object.Data
		}
		found := contents(t, dir)
		for path, data := range want {
			if !strings.HasSuffix(found[path], " "+data) {
				t.Errorf("%q has %q, want %q", path, found[path], data)
			}
		}
		if len(found) != len(want) {
			t.Errorf("found %v, want %v", found, want)
		}
		if others, _ := os.ReadDir(m.statePath(uid, volumesDir)); len(others) != 1 {
			t.Errorf("beside the volume: %v", others)
		}
	})
}
