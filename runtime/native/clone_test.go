package native

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStartFromClone: the program runs from a mount that it cannot write to, and when another one
// is installed in its place, that runs.
func TestStartFromClone(t *testing.T) {
	dir := t.TempDir()
	r := &ociRuntime{ociKind: ociKind{cloned: "CLONED=yes"}, path: filepath.Join(dir, "crun")}
	install := func(program string) {
		data, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(r.path+".new", data, 0o700)
		}
		if err == nil {
			err = os.Rename(r.path+".new", r.path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		cmd := exec.Command(r.path, args...)
		cmd.Env = r.env()
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := r.start(cmd); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		return out.String()
	}
	install("/bin/sh")
	for range 2 {
		if out := run("-c", "echo $CLONED; test -w /proc/$$/exe; echo $?"); out != "yes\n1\n" {
			t.Errorf("got %q, want a program on a read-only mount", out)
		}
	}
	install("/bin/echo")
	if out := run("new"); out != "new\n" {
		t.Errorf("got %q, want what the new program says", out)
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	if err := r.start(exec.Command(r.path)); !os.IsNotExist(err) {
		t.Errorf("a program that is gone: %v", err)
	}
}

// TestStartWithDescriptors: the descriptors of a program that starts, which os/exec moves about, do
// not get into the way of the mount's.
func TestStartWithDescriptors(t *testing.T) {
	r := &ociRuntime{ociKind: ociKind{cloned: "CLONED=yes"}, path: "/bin/true"}
	var files []*os.File
	for range 16 { // the mount gets the next number
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if !r.clone.follow(r.path) {
		t.Fatal("there is no mount")
	}
	for _, f := range files[:8] {
		f.Close()
	}
	for _, f := range files[8:] {
		cmd := exec.Command(r.path)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
		if err := r.start(cmd); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
}
