package volume

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

func TestEtcFiles(t *testing.T) {
	m, base := newManager(t, "")
	defer unix.Umask(unix.Umask(0o077))
	dir := base + "/state/pods/" + string(uid) + "/etc"
	want := []runtime.Mount{
		{Source: dir + "/hosts", Destination: "/etc/hosts", Propagation: "private"},
		{Source: dir + "/hostname", Destination: "/etc/hostname", Propagation: "private"},
		{Source: dir + "/resolv.conf", Destination: "/etc/resolv.conf", Propagation: "private"},
	}
	for _, version := range []string{"1", "2"} {
		mounts, err := m.EtcFiles(uid, []byte("hosts"+version), []byte(""), []byte("resolv"+version))
		must(t, err)
		if diff := cmp.Diff(want, mounts); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]string{"hosts": "0644 0 hosts" + version, "hostname": "0644 0 ", "resolv.conf": "0644 0 resolv" + version}, contents(t, dir)); diff != "" {
			t.Error(diff)
		}
		// A container writes to the file, of any size: the next one gets a fresh one.
		must(t, os.WriteFile(dir+"/hosts", make([]byte, 1<<20), 0o644))
	}
	mounts, err := m.EtcFiles(uid, []byte("h"), nil, nil)
	must(t, err)
	if len(mounts) != 1 {
		t.Errorf("mounts %+v", mounts)
	}
}

func TestJoinMounts(t *testing.T) {
	system := []runtime.Mount{{Source: "/s/hosts", Destination: "/etc/hosts"}, {Source: "/s/name", Destination: "/etc/hostname"}}
	own := []runtime.Mount{{Source: "/o", Destination: "/etc//hosts"}, {Source: "/p", Destination: "/data"}}
	got := JoinMounts(system, own)
	if diff := cmp.Diff([]runtime.Mount{system[1], own[0], own[1]}, got); diff != "" {
		t.Error(diff)
	}
	if system[0].Source != "/s/hosts" {
		t.Error("the argument was changed")
	}
}

func TestTerminationMessage(t *testing.T) {
	m, base := newManager(t, "")
	defer unix.Umask(unix.Umask(0o077))
	if message, err := m.ReadTerminationMessage(uid, "c", 0); err != nil || message != "" {
		t.Errorf("before: %q, %v", message, err)
	}
	mount, err := m.TerminationMessage(uid, "c", 0, "/dev/termination-log")
	must(t, err)
	file := base + "/state/pods/" + string(uid) + "/termination/c.0"
	if diff := cmp.Diff(runtime.Mount{Source: file, Destination: "/dev/termination-log", Propagation: "private"}, mount); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o666 || info.Size() != 0 {
		t.Errorf("%v, %v", info, err)
	}
	for _, tc := range []struct{ name, content, want string }{
		{"empty", "", ""},
		{"short", "out of cheese\n", "out of cheese\n"},
		{"exact", strings.Repeat("x", 4096), strings.Repeat("x", 4096)},
		{"long", "start" + strings.Repeat("x", 4095) + "e", strings.Repeat("x", 4095) + "e"},
		{"cut character", strings.Repeat("ä", 2049) + "x", strings.Repeat("ä", 2047) + "x"},
		{"binary", "a\xff\xfe\x00b", "a\x00b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			must(t, os.WriteFile(file, []byte(tc.content), 0o666))
			// Making it again, after a crash, does not lose it.
			_, err := m.TerminationMessage(uid, "c", 0, "/dev/termination-log")
			must(t, err)
			got, err := m.ReadTerminationMessage(uid, "c", 0)
			if err != nil || got != tc.want || !utf8.ValidString(got) {
				t.Errorf("got %.40q (%d bytes), %v; want %.40q (%d)", got, len(got), err, tc.want, len(tc.want))
			}
		})
	}
	must(t, os.Truncate(file, 1<<40)) // sparse
	if got, err := m.ReadTerminationMessage(uid, "c", 0); err != nil || len(got) != 4096 {
		t.Errorf("huge: %d bytes, %v", len(got), err)
	}
}

func TestTerminationMessageHostile(t *testing.T) {
	m, base := newManager(t, "")
	must(t, os.WriteFile(base+"/secret", []byte("secret"), 0o600))
	for name, make := range map[string]func(path string) error{
		"symlink":   func(path string) error { return os.Symlink(base+"/secret", path) },
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o666) },
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"directory": func(path string) error { return os.Mkdir(path, 0o777) },
	} {
		t.Run(name, func(t *testing.T) {
			mount, err := m.TerminationMessage(uid, "c", 1, "/m")
			must(t, err)
			must(t, os.RemoveAll(mount.Source))
			must(t, make(mount.Source))
			if got, err := m.ReadTerminationMessage(uid, "c", 1); err == nil {
				t.Errorf("got %q", got)
			}
			must(t, os.RemoveAll(mount.Source))
		})
	}
}

func TestTerminationMessageAttempts(t *testing.T) {
	m, _ := newManager(t, "")
	for _, c := range []string{"c", "c-2"} {
		for attempt := range 12 {
			_, err := m.TerminationMessage(uid, c, attempt, "/m")
			must(t, err)
		}
	}
	var names []string
	for _, line := range listing(t, m.statePath(uid, terminationDir)) {
		names = append(names, strings.Fields(line)[0])
	}
	if want := []string{"c-2.10", "c-2.11", "c.10", "c.11"}; !slices.Equal(names, want) {
		t.Errorf("left %v, want %v", names, want)
	}
	for _, bad := range []struct {
		container string
		attempt   int
		path      string
	}{{"", 0, "/m"}, {"../c", 0, "/m"}, {"c", -1, "/m"}, {"c", 0, ""}, {"c", 0, "/"}, {"c", 0, "/a/.."}, {"c", 0, "/a\x00"}} {
		if _, err := m.TerminationMessage(uid, bad.container, bad.attempt, bad.path); pod.KindOf(err) != pod.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := m.ReadTerminationMessage(uid, fmt.Sprintf("%s/x", uid), 0); pod.KindOf(err) != pod.Invalid {
		t.Errorf("a path as a name: %v", err)
	}
}
