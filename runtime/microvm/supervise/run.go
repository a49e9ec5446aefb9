package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/sdnotify"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// The exit statuses of the supervisor.
const (
	// ExitFailure: the VM could not be started, or has ended without having been asked to; the
	// reason is on stderr.
	ExitFailure = 1
	// ExitUsage: the configuration cannot be understood.
	ExitUsage = 64
	// ExitTempFail: the network namespace could not be opened, because its owner is gone.
	ExitTempFail = 75
)

// supervisor is one run.
type supervisor struct {
	config *Config
	netns  int       // -1: the host's
	gate   *vmm.Gate // nil: there is none
	// guest is where a guest says that it is there; nil: there is no gate.
	guest *net.UnixListener

	mu        sync.Mutex
	processes []*process
	ended     chan struct{} // closed when the first of the processes has ended
	first     *process
}

// Run runs the VM of a configuration file until it ends, or SIGTERM or SIGINT asks for its end. It
// notifies the service manager with READY=1 when the VMM runs, which is before the guest answers.
// It returns the exit status: 0 when the end was asked for.
func Run(path string) int {
	config, err := ReadConfig(path)
	if err != nil {
		complain(err)
		return ExitUsage
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	s := &supervisor{config: config, netns: -1, ended: make(chan struct{})}
	err = errors.Join(s.run(stop), s.clear())
	if err == nil {
		return 0
	}
	complain(err)
	if errors.Is(err, nsfile.ErrGone) {
		return ExitTempFail
	}
	return ExitFailure
}

func complain(err error) {
	os.Stderr.WriteString("magikvmm: " + strings.ReplaceAll(err.Error(), "\n", " ") + "\n")
}

func (s *supervisor) run(stop <-chan os.Signal) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	monitor, err := s.boot(ctx)
	if err != nil {
		return err
	}
	work := make(chan error, 3)
	for _, task := range []func(context.Context) error{func(ctx context.Context) error { return s.ready(ctx, monitor) }, s.openGate, s.watch} {
		go func() { work <- task(ctx) }()
	}
	for {
		select {
		case err := <-work:
			if err != nil && ctx.Err() == nil {
				return err
			}
		case <-s.ended:
			return s.endedFirst()
		case <-stop:
			cancel(errors.New("the VM is to end"))
			s.powerOff(monitor)
			return nil
		}
	}
}

// boot starts everything.
func (s *supervisor) boot(ctx context.Context) (*process, error) {
	c := s.config
	driver, err := vmm.Find(c.VM.Driver)
	if err != nil {
		return nil, err
	}
	command, err := driver.Command(&c.VM)
	if err != nil {
		return nil, err
	}
	if c.NetNS != "" {
		if s.netns, err = nsfile.Open(c.NetNS, c.Owner); err != nil {
			return nil, fmt.Errorf("cannot open the pod's network namespace: %w", err)
		}
	}
	if err := errors.Join(makeDir(filepath.Join(c.Dir, jailDir), 0), makeDir(c.socketDir(), int(c.UID))); err != nil {
		return nil, err
	}
	if s.gate = command.Gate; s.gate != nil {
		if s.guest, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.gate.Ready, Net: "unix"}); err != nil {
			return nil, err
		}
		// The helper, which connects to it, is the VM's user.
		if err := os.Chown(s.gate.Ready, int(c.UID), int(c.GID)); err != nil {
			return nil, err
		}
	}
	for name, helper := range command.Helpers {
		if _, err := s.launch(ctx, name, helper); err != nil {
			return nil, err
		}
	}
	if err := s.giveDisks(command); err != nil {
		return nil, err
	}
	return s.launch(ctx, monitorName, command)
}

const monitorName = "monitor"

// giveDisks gives the disks that the VMM opens itself, for writing, to the VM's user.
func (s *supervisor) giveDisks(c *vmm.Command) error {
	for _, m := range c.Mounts {
		if m.Owned {
			if err := os.Chown(m.Source, int(s.config.UID), int(s.config.GID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeDir makes a directory anew, which only its owner can enter.
func makeDir(path string, uid int) error {
	return errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700), os.Chown(path, uid, uid))
}

// launch starts a program and watches it.
func (s *supervisor) launch(ctx context.Context, name string, c *vmm.Command) (*process, error) {
	files, err := s.open(ctx, c)
	if err != nil {
		return nil, err
	}
	p, err := s.start(name, c, files)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.processes = append(s.processes, p)
	s.mu.Unlock()
	go func() {
		<-p.exited
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.first == nil {
			s.first = p
			close(s.ended)
		}
	}()
	return p, nil
}

// endedFirst says which process ended first, and how.
func (s *supervisor) endedFirst() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	how := "it has exited"
	if s.first.err != nil {
		how = s.first.err.Error()
	}
	switch s.first.name {
	case monitorName:
		return fmt.Errorf("the VM has ended: %s", how)
	case "vsock":
		return fmt.Errorf("the VM has lost its vsock device: %s", how)
	}
	return fmt.Errorf("the VM has lost its shared directory: %s", how)
}

// readyTimeout is how long a VMM may take until it answers.
const readyTimeout = time.Minute

// ready waits until the VMM answers, writes the state and notifies the service manager.
func (s *supervisor) ready(ctx context.Context, monitor *process) error {
	driver, err := vmm.Find(s.config.VM.Driver)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("the VMM does not answer"))
	defer cancel()
	// Its socket is there before it is, so that connecting waits for it.
	control, err := driver.Control(ctx, &s.config.VM)
	if err != nil {
		select {
		case <-ctx.Done():
			if context.Cause(ctx) != ctx.Err() && ctx.Err() == context.DeadlineExceeded {
				return fmt.Errorf("cannot start the VM: %w: %w", context.Cause(ctx), err)
			}
			return nil // the end was asked for
		case <-s.ended:
			return nil // run returns it
		}
	}
	if err := control.Close(); err != nil {
		return err
	}
	if err := s.writeState(monitor); err != nil {
		return err
	}
	if err := sdnotify.Notify("READY=1"); !errors.Is(err, sdnotify.ErrUnset) {
		return err
	}
	return nil
}

func (s *supervisor) writeState(monitor *process) error {
	var state vmm.State
	var err error
	if state.Monitor, err = monitor.owner(); err != nil {
		return err
	}
	s.mu.Lock()
	for _, p := range s.processes {
		if p.name == "share" {
			if state.Share, err = p.owner(); err != nil {
				break
			}
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return atomicfile.SaveJSON(filepath.Join(s.config.Dir, stateFile), state)
}

// clear ends what still runs and removes what was made.
func (s *supervisor) clear() error {
	s.mu.Lock()
	processes := s.processes
	s.mu.Unlock()
	for _, p := range processes {
		p.signal(syscall.SIGKILL)
	}
	for _, p := range processes {
		<-p.exited
	}
	if s.netns >= 0 {
		unix.Close(s.netns)
	}
	if s.guest != nil {
		_ = s.guest.Close()
	}
	var errs []error
	for _, path := range []string{s.config.VM.Control, filepath.Join(s.config.Dir, stateFile)} {
		errs = append(errs, remove(path))
	}
	if s.config.VM.Share != nil {
		errs = append(errs, remove(s.config.VM.Share.Socket))
	}
	return errors.Join(append(errs, os.RemoveAll(s.config.socketDir()), os.RemoveAll(filepath.Join(s.config.Dir, jailDir)))...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
