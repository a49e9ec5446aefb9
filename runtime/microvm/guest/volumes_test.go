package guest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/runtime/oci"
)

// mounted is a container with mounts, each at /mnt/N.
func mounted(t *testing.T, name, script string, mounts ...wire.Mount) wire.Create {
	t.Helper()
	request := guesttest.Container(t, name, func(in *oci.Input) {
		for i, m := range mounts {
			in.Mounts = append(in.Mounts, runtime.Mount{Source: wire.MountSource(i), Destination: "/mnt/" + itoa(i), ReadOnly: m.ReadOnly})
		}
	}, "/bin/sh", "-c", script)
	request.Mounts = mounts
	return request
}

// change changes the spec of a container.
func change(t *testing.T, request *wire.Create, how func(*specs.Spec)) {
	t.Helper()
	var spec specs.Spec
	if err := json.Unmarshal(request.Spec, &spec); err != nil {
		t.Fatal(err)
	}
	how(&spec)
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	request.Spec = data
}

// TestVolumes: each kind of mount shows what it should, read-only is respected, and what is the
// pod's outlives the container.
func TestVolumes(t *testing.T) {
	m := guesttest.Start(t)
	source := t.TempDir()
	if err := os.Mkdir(source+"/sub", 0o750); err != nil {
		t.Fatal(err)
	}
	write(t, source+"/key", "value")
	write(t, source+"/sub/key", "deep")
	if err := os.Symlink("/etc", source+"/escape"); err != nil {
		t.Fatal(err)
	}
	if err := m.Copy(t.Context(), "config", source); err != nil {
		t.Fatal(err)
	}
	mounts := []wire.Mount{
		{Kind: wire.MountCopy, Name: "config", ReadOnly: true},
		{Kind: wire.MountCopy, Name: "config", SubPath: "sub/key"},
		{Kind: wire.MountScratch, Name: "empty", Mode: 0o3770, GID: 2000},
		{Kind: wire.MountTmpfs, Name: "memory", Bytes: 1 << 20},
		{Kind: wire.MountShare, Name: "image", SubPath: "root/etc", ReadOnly: true},
		{Kind: wire.MountImage, Image: &wire.Image{Share: "image", File: "root.erofs"}, SubPath: "etc"},
	}
	session := m.Run(t, mounted(t, "a", `cat /mnt/0/key /mnt/0/sub/key /mnt/1; echo; touch /mnt/0/no 2>&1; stat -c '%a %g' /mnt/2; echo kept > /mnt/2/f; echo kept > /mnt/3/f;
		df -k /mnt/3 | tail -n 1 | tr -s ' ' | cut -d' ' -f2; head -n 1 /mnt/4/passwd; cat /mnt/5/group; touch /mnt/5/no 2>&1; stat -c %s /dev/shm; echo x > /dev/shm/x; echo layer > /new`, mounts...))
	exit, stdout, stderr := outcome(t, session)
	if want := "valuedeepdeep\ntouch: /mnt/0/no: Read-only file system\n3770 2000\n1024\nroot:x:0:0:root:/root:/bin/sh\nroot:x:0:\nweb:x:102:\nlogs:x:103:web\ntouch: /mnt/5/no: Read-only file system\n40\n"; exit.Code != 0 || stdout != want {
		t.Errorf("%+v, stdout\n%s\nwant\n%s\nstderr %s", exit, stdout, want, stderr)
	}
	session = m.Run(t, mounted(t, "b", "cat /mnt/2/f /mnt/3/f /dev/shm/x; ls /new 2>&1", mounts...))
	if exit, stdout, _ := outcome(t, session); stdout != "kept\nkept\nx\nls: /new: No such file or directory\n" {
		t.Errorf("%+v %q", exit, stdout)
	}
	if _, err := m.Create(t.Context(), mounted(t, "c", "true", wire.Mount{Kind: wire.MountCopy, Name: "none"})); wire.CodeOf(err) != wire.CodeInvalidRequest {
		t.Errorf("no such volume: %v", err)
	}
	if _, err := m.Create(t.Context(), mounted(t, "c", "true", wire.Mount{Kind: wire.MountCopy, Name: "config", SubPath: "escape/x"})); err == nil {
		t.Error("a symlink has led out of a volume")
	}
	lost := mounted(t, "c", "true")
	change(t, &lost, func(spec *specs.Spec) {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/x", Source: wire.MountSource(7), Type: "bind"})
	})
	if _, err := m.Create(t.Context(), lost); wire.CodeOf(err) != wire.CodeInvalidRequest {
		t.Errorf("a source that is not there: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCopyAgain: a container that has a volume mounted sees the next copy, as a whole if the volume
// is a directory behind a symlink, as ConfigMaps are.
func TestCopyAgain(t *testing.T) {
	m := guesttest.Start(t)
	source := t.TempDir()
	version := func(n, text string, more ...string) {
		t.Helper()
		dir := filepath.Join(source, "..v"+n)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, key := range append(more, "a", "b") {
			write(t, filepath.Join(dir, key), text)
			_ = os.Remove(filepath.Join(source, key))
			if err := os.Symlink("..data/"+key, filepath.Join(source, key)); err != nil {
				t.Fatal(err)
			}
		}
		_ = os.Remove(source + "/..data")
		if err := os.Symlink("..v"+n, source+"/..data"); err != nil {
			t.Fatal(err)
		}
		if err := m.Copy(t.Context(), "config", source); err != nil {
			t.Fatal(err)
		}
	}
	version("1", "one", "gone")
	m.Run(t, mounted(t, "a", "sleep 1000", wire.Mount{Kind: wire.MountCopy, Name: "config", ReadOnly: true}))
	look := func() string {
		session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"sh", "-c", "cd /mnt/0; cat a b; ls -A | tr '\\n' ' '"}})
		if err != nil {
			t.Fatal(err)
		}
		_, stdout, _ := outcome(t, session)
		return stdout
	}
	if got := look(); got != "oneone..data ..v1 a b gone " {
		t.Errorf("%q", got)
	}
	if err := os.RemoveAll(source + "/..v1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(source + "/gone"); err != nil {
		t.Fatal(err)
	}
	version("2", "two")
	if got := look(); got != "twotwo..data ..v2 a b " {
		t.Errorf("%q", got)
	}
}

// TestCopyAnyKey: no key of a volume is the agent's own name for a file that is not ready.
func TestCopyAnyKey(t *testing.T) {
	m := guesttest.Start(t)
	source := t.TempDir()
	for _, key := range []string{".magikpod-new", "a", "z"} {
		write(t, filepath.Join(source, key), key)
	}
	if err := m.Copy(t.Context(), "config", source); err != nil {
		t.Fatal(err)
	}
	session := m.Run(t, mounted(t, "a", "cd /mnt/0; ls -A | tr '\\n' ' '", wire.Mount{Kind: wire.MountCopy, Name: "config", ReadOnly: true}))
	if exit, stdout, stderr := outcome(t, session); exit.Code != 0 || stdout != ".magikpod-new a z " {
		t.Errorf("%+v, %q, %q", exit, stdout, stderr)
	}
}

// TestDevices: a container can make nodes, and use none that is not its own.
func TestDevices(t *testing.T) {
	m := guesttest.Start(t)
	script := "mknod /tmp/mem c 1 1; mknod /tmp/disk b 7 0; mknod /tmp/zero c 1 5; head -c 1 /tmp/mem 2>&1; head -c 1 /tmp/disk 2>&1; head -c 3 /tmp/zero | wc -c; echo x > /dev/null"
	want := "head: /tmp/mem: Operation not permitted\nhead: /tmp/disk: Operation not permitted\n3\n"
	if exit, stdout, stderr := outcome(t, m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", script))); exit.Code != 0 || stdout != want {
		t.Errorf("%+v %q %q", exit, stdout, stderr)
	}
	// The spec's own rules win.
	request := guesttest.Container(t, "b", nil, "/bin/sh", "-c", script)
	one, three := int64(1), int64(3) // crun itself opens /dev/null
	change(t, &request, func(spec *specs.Spec) {
		spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "c", Major: &one, Minor: &three, Access: "rw"}}}
	})
	if _, stdout, stderr := outcome(t, m.Run(t, request)); !strings.Contains(stdout, "0\n") || !strings.Contains(stderr, "mknod: /tmp/disk: Operation not permitted") {
		t.Errorf("%q %q", stdout, stderr)
	}
}

// TestSharedPID: with shareProcessNamespace the containers see each other, and one that ends leaves
// nothing behind.
func TestSharedPID(t *testing.T) {
	m := guesttest.Start(t)
	if err := m.Configure(t.Context(), wire.Configure{SharePID: true}); err != nil {
		t.Fatal(err)
	}
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sleep", "1234"))
	session := m.Run(t, guesttest.Container(t, "b", nil, "/bin/sh", "-c", "sleep 4321 & ps | grep -c '[s]leep 1234'; exit 3"))
	if exit, stdout, stderr := outcome(t, session); exit.Code != 3 || stdout != "1\n" {
		t.Errorf("%+v %q %q", exit, stdout, stderr)
	}
	session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"sh", "-c", "ps | grep -c '[s]leep 4321'; ps | grep -c '[s]leep 1234'"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, stdout, _ := outcome(t, session); stdout != "0\n1\n" {
		t.Errorf("%q", stdout)
	}
	// The first process of the namespace takes all others with it; there is another one for those
	// that come later.
	first := sharedInit(t, m)
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container's end", func() bool { return hasEnded(t, m.Client, "a") })
	// While the old namespace ends, nobody can be born into it.
	eventually(t, "another namespace", func() bool {
		request := guesttest.Container(t, "c", nil, "/bin/sh", "-c", "ps | grep -c '[m]agikagent'; exit 4")
		if session, err = m.Create(t.Context(), request); err != nil {
			t.Log(err)
			return false
		}
		if err = m.Start(t.Context(), "c", request.ID); err != nil {
			session.Close()
		}
		return err == nil
	})
	defer session.Close()
	if exit, stdout, stderr := outcome(t, session); exit.Code != 4 || stdout != "1\n" {
		t.Errorf("%+v %q %q", exit, stdout, stderr)
	}
}

// sharedInit is the first process of the PID namespace that the agent has made.
func sharedInit(t *testing.T, m *guesttest.Guest) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.PID, m.PID))
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", m.PID)) // by the thread that has started them
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tasks {
		more, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has just ended
		}
		data = append(append(data, ' '), more...)
	}
	for field := range strings.FieldsSeq(string(data)) {
		if text, _ := os.ReadFile("/proc/" + field + "/cmdline"); strings.HasPrefix(string(text), "magikagent\x00") {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("none of the agent's children %q is it", data)
	return 0
}
