// Command guest runs in a test VM (tests/vm): it runs the commands that come over the virtio-serial
// port; as one of them ("export") it sends a directory's files as they change. As the init of a
// still smaller VM in that one ("vsock-init") it answers over AF_VSOCK, and "vsock-ask" asks it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/tests/vm/wire"
)

// port is the first port of the first virtio-serial device.
const port = "/dev/vport0p1"

func main() {
	err := errors.New("usage: guest serve | export DIRECTORY | vsock-init | vsock-serve PORT | vsock-ask CID PORT TEXT TIMEOUT")
	switch args := os.Args[1:]; {
	case os.Getpid() == 1:
		err = vsockInit()
	case len(args) == 1 && args[0] == "serve":
		err = serve()
	case len(args) == 2 && args[0] == "export":
		err = export(args[1])
	case len(args) == 2 && args[0] == "vsock-serve":
		err = vsockServe(args[1])
	case len(args) == 5 && args[0] == "vsock-ask":
		err = vsockAsk(args[1], args[2], args[3], args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// server holds the commands that run.
type server struct {
	*wire.Conn
	mu      sync.Mutex
	running map[uint32]*process
}

// serve ends when the port does, and that is when the VM ends.
func serve() error {
	f, err := openPort()
	if err != nil {
		return err
	}
	s := &server{Conn: wire.New(f), running: map[uint32]*process{}}
	if err := s.Send(wire.Frame{Kind: wire.Hello}); err != nil {
		return err
	}
	for {
		frame, err := s.Receive()
		if err != nil {
			return err
		}
		s.handle(frame)
	}
}

// openPort waits for the port to appear.
func openPort() (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		f, err := os.OpenFile(port, os.O_RDWR, 0)
		if err == nil || time.Now().After(deadline) {
			return f, err
		}
	}
}

func (s *server) handle(f wire.Frame) {
	switch f.Kind {
	case wire.Start:
		s.start(f)
		return
	case wire.Hello:
		s.greet(f)
		return
	}
	s.mu.Lock()
	p := s.running[f.ID]
	s.mu.Unlock()
	if p == nil {
		return // it has just ended
	}
	switch f.Kind {
	case wire.Stdin:
		select {
		case p.in <- f.Data:
		case <-p.done:
		}
	case wire.Kill:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have just ended
	case wire.Resize:
		var size wire.Size
		if json.Unmarshal(f.Data, &size) == nil {
			p.resize(size)
		}
	}
}

// greet answers to a VM's owner who has restored it from a state that was saved at another time.
func (s *server) greet(f wire.Frame) {
	if now, err := time.Parse(time.RFC3339Nano, string(f.Data)); err == nil {
		tv := syscall.NsecToTimeval(now.UnixNano())
		_ = syscall.Settimeofday(&tv) // cosmetics
	}
	_ = s.Send(wire.Frame{Kind: wire.Hello})
}

func (s *server) start(f wire.Frame) {
	var c wire.Command
	err := json.Unmarshal(f.Data, &c)
	var p *process
	if err == nil {
		p, err = newProcess(c)
	}
	if err != nil {
		s.exit(f.ID, wire.Status{Code: 127, Error: err.Error()})
		return
	}
	s.mu.Lock()
	s.running[f.ID] = p
	s.mu.Unlock()
	go p.feed()
	go func() {
		var streams sync.WaitGroup
		streams.Go(func() { s.Stream(f.ID, wire.Stdout, p.stdout) })
		if p.stderr != nil {
			streams.Go(func() { s.Stream(f.ID, wire.Stderr, p.stderr) })
		}
		status := p.wait(&streams)
		s.mu.Lock()
		delete(s.running, f.ID)
		s.mu.Unlock()
		close(p.done)
		s.exit(f.ID, status)
	}()
}

func (s *server) exit(id uint32, status wire.Status) {
	data, _ := json.Marshal(status) // never fails
	_ = s.Send(wire.Frame{ID: id, Kind: wire.Exit, Data: data})
}

// code is what a shell would say.
func code(err error) wire.Status {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		if err != nil {
			return wire.Status{Code: 127, Error: err.Error()}
		}
		return wire.Status{}
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return wire.Status{Code: 128 + int(ws.Signal())}
	}
	return wire.Status{Code: exit.ExitCode()}
}
