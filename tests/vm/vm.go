package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/tests/vm/wire"
)

// VM is a running test VM. Its methods may be called from several goroutines.
type VM struct {
	cancel  context.CancelFunc // kills QEMU
	exited  chan struct{}
	console *tail
	port    *os.File
	monitor *os.File
	conn    *wire.Conn
	hello   chan struct{}

	mu       sync.Mutex
	last     uint32
	commands map[uint32]*Process
}

// Boot starts a VM and returns when it has booted completely (`systemctl is-system-running` says
// running). The caller must Close it. A VM without a disk and without Enable is not booted, but
// restored from a state that was saved after one boot; where that fails it is booted.
func Boot(ctx context.Context, opts Options) (*VM, error) {
	image, err := BuildImage(ctx)
	if err != nil {
		return nil, err
	}
	initrd, err := image.writeInitrd(ctx)
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	timeout := opts.BootTimeout
	if timeout == 0 {
		timeout = time.Minute * time.Duration(Slowness())
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not booted after %v", timeout))
	defer cancel()
	if opts.restorable() {
		m, err := restore(ctx, image, opts, initrd)
		if err == nil {
			return m, nil
		}
		fmt.Fprintf(os.Stderr, "vm: %v; booting instead\n", err)
	}
	return coldBoot(ctx, image, opts, initrd)
}

// coldBoot is Boot without a saved state.
func coldBoot(ctx context.Context, image Image, opts Options, initrd *os.File) (*VM, error) {
	payload, err := writePayload(opts)
	if err != nil {
		return nil, err
	}
	defer payload.Close()
	for attempt := 1; ; attempt++ {
		m, err := start(arguments(image, opts), image, opts, initrd, payload)
		if err != nil {
			return nil, fmt.Errorf("cannot start QEMU: %w", err)
		}
		if err = m.booted(ctx); err == nil {
			return m, nil
		}
		m.Close()
		if !errors.Is(err, errHangs) || attempt == maxAttempts {
			return nil, fmt.Errorf("cannot boot a test VM: %w\nits console:\n%s", err, m.Console())
		}
		fmt.Fprintf(os.Stderr, "vm: %v; trying again; its console:\n%s\n", err, m.Console())
	}
}

// An emulated kernel on a busy host can lose the timer of one of its CPUs, and hangs then before it
// runs any program of ours. That says nothing of what is tested, so it is tried again; a boot that
// gets further is not.
const maxAttempts = 3

var errHangs = errors.New("the kernel hangs")

// start launches QEMU. PR_SET_PDEATHSIG is tied to the thread that starts the process, hence a
// goroutine of its own, locked to its thread.
func start(args []string, image Image, opts Options, initrd, payload *os.File) (*VM, error) {
	port, theirPort, err := socketPair("control port")
	if err != nil {
		return nil, err
	}
	defer theirPort.Close()
	monitor, theirMonitor, err := socketPair("monitor")
	if err != nil {
		return nil, errors.Join(err, port.Close())
	}
	defer theirMonitor.Close()
	limit := opts.Limit
	if limit == 0 {
		limit = 30 * time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	m := &VM{
		cancel: cancel, exited: make(chan struct{}), console: &tail{}, port: port, monitor: monitor, conn: wire.New(port), hello: make(chan struct{}),
		commands: map[uint32]*Process{},
	}
	cmd := image.command(ctx, "usr/bin/qemu-system-x86_64", args...)
	cmd.ExtraFiles = []*os.File{initrd, theirPort, payload, theirMonitor}
	cmd.Stdout, cmd.Stderr = m.console, m.console
	cmd.WaitDelay = 2 * time.Second
	// A process group of its own: an interrupt typed at the terminal is the test's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go m.own(cmd, started)
	if err := <-started; err != nil {
		cancel()
		return nil, errors.Join(err, port.Close(), monitor.Close())
	}
	go m.receive()
	return m, nil
}

// socketPair makes two connected sockets: ours, and the one that QEMU gets.
func socketPair(name string) (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), "QEMU's "+name), nil
}

// own starts QEMU and waits for its end.
func (m *VM) own(cmd *exec.Cmd, started chan<- error) {
	goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // its console says how it ended
		m.cancel()
		_ = m.port.Close() // ends receive
		_ = m.monitor.Close()
	}
	close(m.exited)
}

// hangTime is how long it may take to the first program of ours, times [Slowness]: ten times what
// it takes when nothing else runs.
const hangTime = 18 * time.Second

// booted waits until the VM runs.
func (m *VM) booted(ctx context.Context) error {
	select {
	case <-m.hello:
	case <-m.exited:
		return errors.New("it ended while booting")
	case <-time.After(hangTime * time.Duration(Slowness())):
		return errHangs
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r, err := m.Run(ctx, "systemctl", "is-system-running", "--wait")
	if err != nil {
		return err
	}
	if state := strings.TrimSpace(r.Stdout); state != "running" {
		failed, _ := m.Run(ctx, "systemctl", "--failed", "--no-legend", "--plain")
		return fmt.Errorf("the system is %q, not running; failed units:\n%s", state, failed.Stdout)
	}
	return nil
}

// Close ends the VM at once, as a power cut does. It may be called more than once.
func (m *VM) Close() {
	m.cancel()
	<-m.exited
}

// PowerOff shuts the VM down in order and waits for its end.
func (m *VM) PowerOff(ctx context.Context) error { return m.goDown(ctx, "poweroff") }

// Reboot is PowerOff by way of a reboot, which ends QEMU, too: [Boot] boots what the VM has left on
// its disk.
func (m *VM) Reboot(ctx context.Context) error { return m.goDown(ctx, "reboot") }

func (m *VM) goDown(ctx context.Context, verb string) error {
	_, err := m.Run(ctx, "systemctl", "--no-block", verb)
	if err != nil && ctx.Err() != nil {
		return err
	}
	select { // the VM may have ended before the command had
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot %s the VM: %w\nits console:\n%s", verb, errors.Join(context.Cause(ctx), err), m.Console())
	}
}

// Done is closed when the VM has ended.
func (m *VM) Done() <-chan struct{} { return m.exited }

// Console returns the last part (at most 64 KiB) of what the kernel and QEMU have said.
func (m *VM) Console() string { return m.console.String() }

// receive hands frames to the commands until the VM ends.
func (m *VM) receive() {
	greeted := false
	for {
		f, err := m.conn.Receive()
		if err != nil {
			break
		}
		if f.Kind == wire.Hello && !greeted {
			greeted = true
			close(m.hello)
		}
		m.mu.Lock()
		p := m.commands[f.ID]
		m.mu.Unlock()
		if p != nil {
			p.handle(f)
		}
	}
	<-m.exited
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.commands {
		p.end(wire.Status{Code: -1, Error: "the VM has ended"})
	}
	m.commands = nil
}

// register gives a command its number; false when the VM has ended.
func (m *VM) register(p *Process) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.commands == nil {
		return false
	}
	m.last++
	p.id = m.last
	m.commands[p.id] = p
	return true
}

func (m *VM) forget(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.commands, p.id)
}

// discard is where output without a reader goes.
func discard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
