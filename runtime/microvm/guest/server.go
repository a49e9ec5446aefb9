package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// Config is what a [Server] is made from. All fields but Check, Log, PowerOff and SetClock are required.
type Config struct {
	// Dir holds all that the server makes; it must be on a file system that overlayfs takes as a
	// mount point, such as tmpfs.
	Dir string
	// Crun is the path of crun.
	Crun string
	// CgroupRoot is where cgroups of version 2 are mounted, and CgroupParent the cgroup below it
	// that those of the containers are made in.
	CgroupRoot, CgroupParent string
	// Version is that of the program.
	Version string
	// Reaper collects this process's children.
	Reaper *Reaper
	// Check refuses connections; nil: all are served.
	Check func(net.Conn) error
	// PowerOff ends the VM; nil: PowerOff requests are refused. It is called after the containers
	// were killed.
	PowerOff func()
	// SetClock sets the VM's clock; nil: it is not the VM's own, and is left alone.
	SetClock func(time.Time) error
	// Log gets the errors that no reply reports; nil: they are dropped.
	Log func(error)
}

// Server serves the protocol.
type Server struct {
	config Config
	slots  chan struct{} // one for each connection

	setup      sync.Mutex // one Configure or Copy at a time
	configured bool       // guarded by mu
	sharesPID  bool       // all containers are in one PID namespace; guarded by mu
	sharedPID  int        // the first process of that, 0 when there is none; guarded by mu

	mu         sync.Mutex
	containers map[string]*container
	mounts     mountTable
	execs      int  // how many were run: their names
	stopping   bool // the VM is being powered off
}

// New makes a server, and its directories. One process has one: it takes all children, and sets the
// process's umask.
func New(config Config) (*Server, error) {
	s := &Server{config: config, containers: map[string]*container{}, slots: make(chan struct{}, wire.MaxConnections)}
	if s.config.Log == nil {
		s.config.Log = func(error) {}
	}
	if s.config.SetClock == nil {
		s.config.SetClock = func(time.Time) error { return nil }
	}
	unix.Umask(0o022) // modes must not depend on whoever has started this
	for _, dir := range []string{containersName, copiesName, sharesName, disksName, filesName, tmpfsName, scratchName, crunName, shmName} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the agent's directories: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(config.CgroupRoot, config.CgroupParent), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the containers' cgroup: %w", err)
	}
	return s, nil
}

// The directories below Dir.
const (
	containersName = "containers"
	copiesName     = "copies"
	sharesName     = "shares"
	disksName      = "disks"
	filesName      = "files"
	tmpfsName      = "tmpfs"
	scratchName    = "scratch"
	crunName       = "crun"
	shmName        = "shm"

	layersName = "layers" // below scratchName: writable layers, by the container's ID
)

func (s *Server) path(parts ...string) string {
	return filepath.Join(append([]string{s.config.Dir}, parts...)...)
}

// refusedPause is how often a refused connection is logged.
const refusedPause = 10 * time.Second

// Serve serves connections until the listener is closed, which is no error. Connections that are
// open go on.
func (s *Server) Serve(listener net.Listener) error {
	var refused time.Time
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// No descriptor or no memory left, or a client that left at once: the VM is of no use
			// without its agent.
			s.config.Log(fmt.Errorf("cannot accept a connection: %w", err))
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if s.config.Check != nil {
			if err := s.config.Check(conn); err != nil {
				conn.Close()
				// A container can do this without end, and the log is the host's.
				if now := time.Now(); now.Sub(refused) > refusedPause {
					refused = now
					s.config.Log(err)
				}
				continue
			}
		}
		select {
		case s.slots <- struct{}{}:
			go func() {
				defer func() { <-s.slots }()
				s.serve(conn)
			}()
		default:
			s.config.Log(fmt.Errorf("cannot serve more than %d connections", wire.MaxConnections))
			conn.Close()
		}
	}
}

// serve serves one connection.
func (s *Server) serve(conn net.Conn) {
	defer conn.Close()
	w := wire.NewConn(conn)
	_ = conn.SetReadDeadline(time.Now().Add(wire.LineTimeout))
	request, err := w.ReadRequest()
	if err != nil {
		if wire.CodeOf(err) == wire.CodeInvalidRequest || errors.Is(err, wire.ErrTooLong) {
			_ = w.WriteError(wire.Errorf(wire.CodeInvalidRequest, "%v", err))
		}
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	p := &peer{conn: conn, Conn: w}
	if err := s.dispatch(p, request); err != nil {
		_ = w.WriteError(err)
	}
}

// dispatch serves a request. An error is what has not been replied to yet.
func (s *Server) dispatch(p *peer, request wire.Request) error {
	switch r := request.(type) {
	case *wire.Create:
		return s.create(p, r)
	case *wire.Exec:
		return s.exec(p, r)
	case *wire.Copy:
		return s.copyVolume(p, r)
	case *wire.PowerOff:
		return s.powerOff(p)
	}
	// The others reply once. When the host does not wait for it any more, neither need the answer
	// be found.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go p.watch(cancel)
	reply, err := s.answer(ctx, request)
	if err != nil {
		return err
	}
	return p.WriteReply(reply)
}

// answer answers the requests that are over with a reply.
func (s *Server) answer(ctx context.Context, request wire.Request) (any, error) {
	switch r := request.(type) {
	case *wire.Ping:
		return s.ping(r), nil
	case *wire.Configure:
		return nil, s.configure(r)
	case *wire.Start:
		return nil, s.start(r)
	case *wire.Signal:
		return nil, s.signal(r)
	case *wire.Probe:
		return s.probe(ctx, r)
	case *wire.Stats:
		return s.stats()
	case *wire.Update:
		return nil, s.update(r)
	}
	return nil, wire.Errorf(wire.CodeInvalidRequest, "cannot serve the request %s", request.Name())
}

func (s *Server) ping(r *wire.Ping) wire.Pong {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.configured && !r.Time.IsZero() && time.Until(r.Time).Abs() > wire.MaxClockError {
		if err := s.config.SetClock(r.Time); err != nil {
			s.config.Log(err)
		}
	}
	return wire.Pong{
		Type: "pong", Version: s.config.Version, Protocol: wire.Version, Configured: s.configured, Time: time.Now(),
	}
}

// powerOff kills all containers and ends the VM.
func (s *Server) powerOff(p *peer) error {
	if s.config.PowerOff == nil {
		return wire.Errorf(wire.CodeInvalidRequest, "cannot power off: this is no VM of its own")
	}
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	if err := p.WriteReply(nil); err != nil {
		s.config.Log(err) // it is off with or without an answer
	}
	p.conn.Close()
	s.Stop()
	s.config.PowerOff()
	return nil
}

// stopTime is how long killed containers may take to be gone before the VM ends anyway.
const stopTime = 5 * time.Second

// Stop kills and removes all containers; no new ones are made.
func (s *Server) Stop() {
	s.mu.Lock()
	s.stopping = true
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	var removing sync.WaitGroup
	done := make(chan struct{})
	for _, c := range list {
		removing.Go(c.remove)
	}
	go func() { removing.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopTime):
		s.config.Log(errors.New("cannot remove all containers in time"))
	}
}
