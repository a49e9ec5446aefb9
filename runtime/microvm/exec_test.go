package microvm

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// newAgent is a Runtime that knows one VM, whose agent is who accepts from the listener.
func newAgent(t *testing.T) (*Runtime, runtime.Running, net.Listener) {
	t.Helper()
	dir, err := os.MkdirTemp("", "microvm") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	r := &record{}
	r.VMM.VM.Vsock = vmm.Vsock{Kind: vmm.VsockHybrid, Path: filepath.Join(dir, "agent")}
	s := runtime.Sandbox{RunDir: dir}
	if err := os.Mkdir(runDir(s), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := save(filepath.Join(runDir(s), recordFile), r); err != nil {
		t.Fatal(err)
	}
	return &Runtime{vms: map[string]*vm{}}, runtime.Running{Sandbox: s, Container: "a"}, guesttest.HybridListener{Listener: listener}
}

// TestExecSize: the process has the size of its terminal that is known before it starts, and later
// ones as they come. That the VM is being given something, which may take minutes, does not matter
// to it.
func TestExecSize(t *testing.T) {
	l, c, listener := newAgent(t)
	m, err := l.vm(c.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	defer m.mu.Unlock()
	resize := make(chan runtime.WinSize, 1)
	resize <- runtime.WinSize{Rows: 20, Cols: 50}
	var sizes []wire.Size
	served := make(chan error, 1)
	go func() {
		served <- serveExec(listener, &sizes, func() { resize <- runtime.WinSize{Rows: 30, Cols: 60} })
	}()
	status, err := l.Exec(t.Context(), c, runtime.Process{Args: []string{"stty", "size"}, TTY: true, Resize: resize})
	if served := <-served; err != nil || served != nil || status.Code != 7 {
		t.Errorf("%+v, %v, %v", status, err, served)
	}
	if diff := cmp.Diff([]wire.Size{{Rows: 20, Cols: 50}, {Rows: 30, Cols: 60}}, sizes); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// TestExecTimeout: a VM that does not heed the timeout does not keep the caller.
func TestExecTimeout(t *testing.T) {
	l, c, _ := newAgent(t) // which never answers
	defer func(slack time.Duration) { execSlack = slack }(execSlack)
	execSlack = 100 * time.Millisecond
	began := time.Now()
	status, err := l.Exec(t.Context(), c, runtime.Process{Args: []string{"true"}, Timeout: 100 * time.Millisecond})
	if took := time.Since(began); err == nil || took > 10*time.Second {
		t.Errorf("%+v, %v after %s", status, err, took)
	}
}

// TestNoVM: that somebody asks for a VM that is gone leaves nothing behind.
func TestNoVM(t *testing.T) {
	l := &Runtime{vms: map[string]*vm{}}
	if err := l.Signal(t.Context(), runtime.Running{Sandbox: runtime.Sandbox{RunDir: t.TempDir()}, Container: "a"}, unix.SIGTERM); pod.KindOf(err) != pod.Unavailable || len(l.vms) > 0 {
		t.Errorf("%v, %v", err, l.vms)
	}
}

// serveExec is an agent that serves one exec. It notes the sizes of its terminal, calls more after
// the first one, and ends with the second.
func serveExec(listener net.Listener, sizes *[]wire.Size, more func()) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	c := wire.NewConn(conn)
	request, err := c.ReadRequest()
	if err != nil {
		return err
	}
	if exec, ok := request.(*wire.Exec); ok && exec.Size != nil {
		*sizes = append(*sizes, *exec.Size)
	}
	if err := c.WriteReply(nil); err != nil {
		return err
	}
	more()
	frame, err := c.ReadFrame(nil)
	if err != nil {
		return err
	}
	var size wire.Size
	if err := frame.Decode(&size); err != nil {
		return err
	}
	*sizes = append(*sizes, size)
	return c.WriteJSON(wire.FrameExit, wire.Exit{Type: "exit", Code: 7})
}
