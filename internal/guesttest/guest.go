package guesttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/tests/host"
)

// Guest is a running agent.
type Guest struct {
	*client.Client
	Socket string // of the agent
	Hybrid string // the same behind a VMM's handshake
	Cgroup string // that the containers' are in, as this process sees it
	PID    int    // of the agent
	stdin  io.Closer
	stderr *safeBuffer
}

var count atomic.Int32

// Start starts an agent and has it configured. It is skipped without root, crun, busybox or mkfs.erofs.
func Start(t testing.TB) *Guest {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the tests with sudo")
	}
	for program, pkg := range map[string]string{"crun": "crun", "busybox": "busybox-static", "mkfs.erofs": "erofs-utils"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: apt-get install %s", program, pkg)
		}
	}
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/state", 0o755); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("magikagent-test-%d-%d", os.Getpid(), count.Add(1))
	m := &Guest{Client: client.New(client.Unix(dir + "/agent")), Socket: dir + "/agent", Hybrid: dir + "/vsock", Cgroup: filepath.Join(cgroup.Root(), name), stderr: &safeBuffer{}}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), dirVariable+"="+dir, cgroupVariable+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Unshareflags: unix.CLONE_NEWNS,
	}
	cmd.Stdout, cmd.Stderr = m.stderr, m.stderr
	if m.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.PID = cmd.Process.Pid
	t.Cleanup(func() {
		m.stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := errors.Join(cgroup.RemoveWithin(m.Cgroup, host.Patience(5*time.Second), nil), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", m.stderr)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), host.Patience(30*time.Second))
	defer cancel()
	if _, err := m.WaitReady(ctx); err != nil {
		t.Fatalf("%v\n%s", err, m.stderr)
	}
	if err := m.Configure(ctx, wire.Configure{Hostname: "web", SharePID: false}); err != nil {
		t.Fatal(err)
	}
	return m
}

// safeBuffer is a buffer that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(data)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Containers are the names of the cgroups of the containers that there are.
func (m *Guest) Containers(t testing.TB) string {
	t.Helper()
	entries, err := os.ReadDir(m.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return strings.Join(names, " ")
}

// Container is a container of a plain pod that runs args; change, when not nil, makes it another.
func Container(t testing.TB, name string, change func(in *oci.Input), args ...string) wire.Create {
	t.Helper()
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: name, Command: args}}}}
	p.Namespace, p.Name, p.UID = "default", "web", "u1"
	in := oci.Input{
		Pod: p, Container: &p.Spec.Containers[0], Rootfs: "/rootfs", ShmDir: "/dev/shm", Hostname: "web",
		Image: runtime.Image{Config: runtime.ImageConfig{Env: []string{"PATH=/bin"}, WorkingDir: "/"}},
	}
	if change != nil {
		change(&in)
	}
	spec, err := oci.Spec(in)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Create{Container: name, ID: name + "-id-" + fmt.Sprint(count.Add(1)), Spec: data, Rootfs: wire.Image{Share: shareTag, File: imageFile}}
}

// Run creates and starts a container, whose session the test ends.
func (m *Guest) Run(t testing.TB, request wire.Create) *client.Session {
	t.Helper()
	session, err := m.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	if err := m.Start(t.Context(), request.Container, request.ID); err != nil {
		t.Fatal(err)
	}
	return session
}
