package crun

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/safepath"
)

func TestMergeEnv(t *testing.T) {
	base := []string{"PATH=/bin", "HOME=/root", "A=1"}
	for _, tc := range []struct {
		name string
		more []string
		home string
		tty  bool
		want string
	}{
		{"nothing", nil, "", false, "PATH=/bin HOME=/root A=1"},
		{"replace and add", []string{"A=2", "B=3", "B=4", "C="}, "", false, "PATH=/bin HOME=/root A=2 B=4 C="},
		{"home", nil, "/home/app", false, "PATH=/bin HOME=/home/app A=1"},
		{"home given", []string{"HOME=/x"}, "/home/app", false, "PATH=/bin HOME=/x A=1"},
		{"terminal", nil, "", true, "PATH=/bin HOME=/root A=1 TERM=xterm"},
		{"terminal given", []string{"TERM=vt100"}, "", true, "PATH=/bin HOME=/root A=1 TERM=vt100"},
	} {
		got, err := mergeEnv(base, tc.more, tc.home, tc.tty)
		if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
	for _, bad := range []string{"A", "=x", "A=\x00", ""} {
		if _, err := mergeEnv(base, []string{bad}, "", false); errkind.KindOf(err) != errkind.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if base[2] != "A=1" {
		t.Error("the base was changed")
	}
}

// TestReadBelow checks that a container cannot make us read or wait for something else than its own
// files.
func TestReadBelow(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	for path, text := range map[string]string{outside: "outside", dir + "/plain": "inside", dir + "/big": strings.Repeat("x", maxUserFile+1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"absolute": outside, "relative": "../../../../../../../.." + outside, "fine": "/plain", "magic": "/proc/self/fd/0", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := safepath.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, want := range map[string]string{"plain": "inside", "fine": "inside", "missing": "", "absolute": "", "relative": "", "magic": ""} {
		if got, err := readBelow(root, name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"fifo", "big", "loop", "."} {
		if got, err := readBelow(root, name); errkind.KindOf(err) != errkind.Invalid {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestProcess(t *testing.T) {
	first := specs.Process{Args: []string{"sh"}, Env: []string{"A=1"}, Cwd: "/srv", Terminal: true}
	alive := func() bool { return true }
	p, err := Process(first, os.Getpid(), alive, Exec{Args: []string{"ls"}, Env: []string{"A=2"}, User: "7:8"})
	if err != nil || p.Args[0] != "ls" || p.Terminal || p.Cwd != "/srv" || p.User.UID != 7 || p.User.GID != 8 || !slices.Contains(p.Env, "A=2") {
		t.Errorf("the process of the exec is %+v, %v, want ls as 7:8 in /srv with A=2, without a terminal", p, err)
	}
	if first.Args[0] != "sh" || first.Env[0] != "A=1" {
		t.Errorf("the first process was changed: %+v", first)
	}
	if _, err := Process(first, os.Getpid(), func() bool { return false }, Exec{User: "7"}); errkind.KindOf(err) != errkind.Conflict {
		t.Errorf("a PID that is another process's by now: %v", err)
	}
	for name, x := range map[string]Exec{"directory": {Dir: "tmp"}, "user": {User: "nobody-like-that"}, "ID": {User: "4294967296"}} {
		if _, err := Process(first, os.Getpid(), alive, x); errkind.KindOf(err) != errkind.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
