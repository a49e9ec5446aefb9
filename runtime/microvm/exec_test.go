package microvm

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/agent/wire"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestExecSize: the process has the size of its terminal that is known before it starts, and later ones as they come.
func TestExecSize(t *testing.T) {
	dir, err := os.MkdirTemp("", "microvm") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	listener, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	r := &record{}
	r.VMM.VM.Vsock = vmm.Vsock{Kind: vmm.VsockPort, Path: filepath.Join(dir, "agent")}
	if err := save(filepath.Join(dir, recordFile), r); err != nil {
		t.Fatal(err)
	}
	resize := make(chan runtime.WinSize, 1)
	resize <- runtime.WinSize{Rows: 20, Cols: 50}
	var sizes []wire.Size
	served := make(chan error, 1)
	go func() {
		served <- serveExec(listener, &sizes, func() { resize <- runtime.WinSize{Rows: 30, Cols: 60} })
	}()
	l := &Launcher{machines: map[string]*machine{}}
	status, err := l.Exec(t.Context(), runtime.Machine{RunDir: dir}, "a", runtime.Process{Args: []string{"stty", "size"}, TTY: true, Resize: resize})
	if served := <-served; err != nil || served != nil || status.Code != 7 {
		t.Errorf("%+v, %v, %v", status, err, served)
	}
	if diff := cmp.Diff([]wire.Size{{Rows: 20, Cols: 50}, {Rows: 30, Cols: 60}}, sizes); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// serveExec is an agent that serves one exec. It notes the sizes of its terminal, calls more after the first one, and ends with the second.
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
