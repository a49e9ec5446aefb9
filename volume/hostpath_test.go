package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// hostTree has one entry of each type, and symlinks.
func hostTree(t *testing.T, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Mkdir(dir+"/dir", 0o755))
	must(t, os.WriteFile(dir+"/file", []byte("kept"), 0o600))
	must(t, unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	must(t, unix.Mknod(dir+"/char", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250)))) // a loop device that does not exist: it is never opened
	must(t, os.Symlink("dir", dir+"/linkdir"))
	must(t, os.Symlink("file", dir+"/linkfile"))
	must(t, os.Symlink("nothing", dir+"/dangling"))
	must(t, os.Symlink("loop", dir+"/loop"))
}

func TestHostPath(t *testing.T) {
	type check struct {
		path string
		kind corev1.HostPathType
		want pod.Kind // "": fine
		made string   // mode of what was made
	}
	checks := []check{
		{"dir", corev1.HostPathUnset, "", ""},
		{"file", corev1.HostPathUnset, "", ""},
		{"fifo", corev1.HostPathUnset, "", ""},
		{"socket", corev1.HostPathUnset, "", ""},
		{"new/a", corev1.HostPathUnset, "", "drwxr-xr-x"},
		{"new/a", corev1.HostPathDirectoryOrCreate, "", "drwxr-xr-x"},
		{"new", corev1.HostPathFileOrCreate, "", "-rw-r--r--"},
		{"new/a", corev1.HostPathFileOrCreate, pod.NotFound, ""},
		{"linkdir/sub", corev1.HostPathDirectoryOrCreate, "", "drwxr-xr-x"},
		{"linkdir/sub", corev1.HostPathFileOrCreate, "", "-rw-r--r--"},
		{"dangling", corev1.HostPathDirectoryOrCreate, pod.Invalid, ""},
		{"dangling/a", corev1.HostPathDirectoryOrCreate, pod.Invalid, ""},
		{"dangling", corev1.HostPathFileOrCreate, pod.Invalid, ""},
		{"dangling", corev1.HostPathFile, pod.NotFound, ""},
		{"file/a", corev1.HostPathDirectoryOrCreate, pod.Invalid, ""},
		{"loop", corev1.HostPathDirectory, pod.Invalid, ""},
		{"dir", "Nonsense", pod.Invalid, ""},
		{strings.Repeat("x", 256), corev1.HostPathDirectoryOrCreate, pod.Invalid, ""},
	}
	// Each type takes exactly its own, also through a symlink.
	fits := map[corev1.HostPathType][]string{
		corev1.HostPathDirectory: {"dir", "linkdir"}, corev1.HostPathDirectoryOrCreate: {"dir", "linkdir"},
		corev1.HostPathFile: {"file", "linkfile"}, corev1.HostPathFileOrCreate: {"file", "linkfile"},
		corev1.HostPathSocket: {"socket"}, corev1.HostPathCharDev: {"char"}, corev1.HostPathBlockDev: {"block"},
	}
	for kind, own := range fits {
		for _, path := range []string{"dir", "file", "socket", "fifo", "char", "block", "linkdir", "linkfile"} {
			c := check{path, kind, pod.Invalid, ""}
			for _, fit := range own {
				if fit == path {
					c.want = ""
				}
			}
			checks = append(checks, c)
		}
		if kind != corev1.HostPathDirectoryOrCreate && kind != corev1.HostPathFileOrCreate {
			checks = append(checks, check{"missing", kind, pod.NotFound, ""})
		}
	}
	for _, tc := range checks {
		name := string(tc.kind) + " " + tc.path
		t.Run(name[:min(len(name), 50)], func(t *testing.T) {
			m, base := newManager(t, "")
			hostTree(t, base+"/host")
			before := len(listing(t, base))
			path := filepath.Join(base, "host", tc.path)
			p := podWith(volume("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &tc.kind}}))
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))} // not for host paths
			defer unix.Umask(unix.Umask(0o077))
			for range 2 {
				prepared, err := m.Prepare(t.Context(), p, Sources{})
				if pod.KindOf(err) != tc.want {
					t.Fatalf("got %v: %v; want %q", pod.KindOf(err), err, tc.want)
				}
				if err != nil {
					if !strings.Contains(err.Error(), "hostPath") {
						t.Errorf("the error does not name the path: %v", err)
					}
					continue
				}
				mounts, err := prepared.Mounts(&corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "h", MountPath: "/h"}}})
				if err != nil || len(mounts) != 1 || mounts[0].Source != path || mounts[0].ReadOnly {
					t.Errorf("mounts %+v, %v", mounts, err)
				}
			}
			if tc.made != "" {
				if info, err := os.Stat(path); err != nil || info.Mode().String() != tc.made {
					t.Errorf("made %v, %v", info, err)
				}
			} else if after := len(listing(t, base)); after != before {
				t.Errorf("%d entries, and %d before", after, before)
			}
			for _, line := range listing(t, base) {
				if !strings.HasSuffix(line, " 0:0") {
					t.Errorf("%s: the owner changed", line)
				}
			}
			if data, err := os.ReadFile(base + "/host/file"); err != nil || string(data) != "kept" {
				t.Errorf("file: %q, %v", data, err)
			}
		})
	}
}

func TestHostPathRefused(t *testing.T) {
	m, _ := newManager(t, "")
	for _, path := range []string{"", "a", "/a/../b", "/..", "/a\x00b", "../a"} {
		p := podWith(volume("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}))
		if _, err := m.Prepare(t.Context(), p, Sources{}); pod.KindOf(err) != pod.Invalid {
			t.Errorf("%q: %v", path, err)
		}
	}
}
