package guesttest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/guest"
	"github.com/magikrun/magikpod/shim"
)

// The variables that make a test binary the agent.
const (
	dirVariable    = "MAGIKPOD_GUESTTEST_DIR"
	cgroupVariable = "MAGIKPOD_GUESTTEST_CGROUP"
)

// shareTag is that of the one share, which has the image of all containers in it, and in the
// directory root what is in that.
const (
	shareTag  = "image"
	imageFile = "root.erofs"
)

// Main is for TestMain: it runs the tests, or is the agent that one of them has started.
func Main(m *testing.M) int {
	switch {
	case len(os.Args) == 2 && os.Args[1] == shim.ReapCommand:
		return shim.Reap()
	case len(os.Args) > 2 && os.Args[1] == guest.ScoreCommand:
		fmt.Fprintln(os.Stderr, guest.SetScore(os.Args[2:]))
		return 1
	case os.Getenv(dirVariable) != "" && os.Getpid() == 1:
		if err := serve(os.Getenv(dirVariable), os.Getenv(cgroupVariable)); err != nil {
			fmt.Fprintln(os.Stderr, "guesttest:", err)
		}
		return 1
	}
	return m.Run()
}

// serve is the agent. It ends when its standard input does.
func serve(dir, cgroup string) error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := prepare(dir); err != nil {
		return err
	}
	crun, err := exec.LookPath("crun")
	if err != nil {
		return err
	}
	server, err := guest.New(guest.Config{
		Dir: dir + "/state", Crun: crun, CgroupRoot: "/sys/fs/cgroup", CgroupParent: cgroup, Version: "test", Reaper: guest.NewReaper(),
		Log:      func(err error) { fmt.Fprintln(os.Stderr, "guest:", err) },
		PowerOff: func() { os.Exit(0) },
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", dir+"/agent")
	if err != nil {
		return err
	}
	vsock, err := net.Listen("unix", dir+"/vsock")
	if err != nil {
		return err
	}
	go server.Serve(HybridListener{vsock})
	return server.Serve(listener)
}

// HybridListener answers each connection's "CONNECT PORT" with an "OK 1", as a VMM's socket does,
// and then is the agent's.
type HybridListener struct{ net.Listener }

func (l HybridListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	for b := make([]byte, 1); err == nil && b[0] != '\n'; {
		_, err = conn.Read(b)
	}
	if err == nil {
		_, err = io.WriteString(conn, "OK 1\n")
	}
	return conn, err
}

// prepare makes the namespaces' own file systems: what a guest has.
func prepare(dir string) error {
	state := dir + "/state"
	for _, m := range []struct{ source, target, kind, options string }{
		{"proc", "/proc", "proc", ""},
		// crun refuses a host with both versions of cgroups.
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
		{"tmpfs", state, "tmpfs", "mode=0755"},
	} {
		// EBUSY: it is there, where the host has no other cgroups.
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("cannot mount %s: %w", m.target, err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	share := state + "/shares/" + shareTag
	root := share + "/root"
	bin := root + "/bin"
	for _, sub := range []string{bin, root + "/etc", root + "/tmp"} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	err = errors.Join(
		os.WriteFile(bin+"/busybox", data, 0o755),
		os.WriteFile(root+"/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/var/web:/bin/sh\n"), 0o644),
		os.WriteFile(root+"/etc/group", []byte("root:x:0:\nweb:x:102:\nlogs:x:103:web\n"), 0o644),
		os.WriteFile(bin+"/notexec", []byte("x"), 0o644),
	)
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "id", "ls", "stty", "head", "dd", "grep", "yes", "wc", "env", "true", "tail", "hostname", "nc", "mknod", "touch", "ps", "kill", "tty", "ip", "httpd", "test", "seq", "mount", "tr", "cut", "df", "stat"} {
		err = errors.Join(err, os.Symlink("busybox", filepath.Join(bin, applet)))
	}
	if err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.erofs", "--quiet", share+"/"+imageFile, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	return nil
}
