package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say what to boot. The zero value boots the build host's own root.
type Options struct {
	// Root is the directory of the root file system; empty for the build host's own. It is never
	// written to.
	Root string
	// Install is a directory that `make install DESTDIR=` has filled; it is laid over the root.
	// Empty: none.
	Install string
	// Binds are directories or files of the build host to mount in the host, writable: SOURCE or
	// SOURCE:DESTINATION, as for systemd-nspawn --bind.
	Binds []string
	// BootTimeout is how long the host may take to boot; 0 stands for 90 seconds.
	BootTimeout time.Duration
}

// Host is a running disposable host. Its methods may be called from several goroutines.
type Host struct {
	name   string
	dir    string   // below runDir; holds what must be removed in the end
	lock   *os.File // locked as long as the owner lives
	cgroup string   // directory of the host's cgroup
	leader int      // PID of the host's systemd, as this process sees it

	cancel func() // kills the outermost process
	exited chan struct{}
	output *tail // console of nspawn and systemd

	closeOnce sync.Once
	closeErr  error
}

// Boot starts a host and returns when it has booted completely (`systemctl is-system-running` says
// running). The caller must Close it. Leftovers of hosts whose owners have died are removed first.
func Boot(ctx context.Context, opts Options) (*Host, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	timeout := opts.BootTimeout
	if timeout == 0 {
		timeout = 90 * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not booted after %v", timeout))
	defer cancel()

	h, err := claim()
	if err != nil {
		return nil, err
	}
	if err := h.boot(ctx, opts); err != nil {
		console := h.output.String()
		return nil, errors.Join(fmt.Errorf("cannot boot host %s: %w\nits console:\n%s", h.name, err, console), h.Close())
	}
	return h, nil
}

// boot fills in a claimed host. On failure the caller closes it.
func (h *Host) boot(ctx context.Context, opts Options) error {
	if err := writeSeed(filepath.Join(h.dir, "seed"), h.name); err != nil {
		return err
	}
	ready, err := listenReady(filepath.Join(h.dir, "notify"))
	if err != nil {
		return err
	}
	defer ready.Close()
	if err := h.start(opts); err != nil {
		return err
	}
	if err := ready.wait(ctx, h.exited); err != nil {
		return err
	}
	if h.leader, err = findLeader(h.cgroup); err != nil {
		return err
	}
	out, err := h.enter(ctx, "systemctl", "is-system-running", "--wait").CombinedOutput()
	if state := strings.TrimSpace(string(out)); err != nil || state != "running" {
		failed, _ := h.enter(ctx, "systemctl", "--failed", "--no-legend", "--plain").CombinedOutput()
		return fmt.Errorf("the system is %q, not running; failed units:\n%s", state, failed)
	}
	return nil
}

// start launches systemd-nspawn and what guards it, and sets h.cgroup. The thread that starts the
// process must live as long as the host does, because PR_SET_PDEATHSIG is tied to the thread: hence
// a goroutine of its own, locked to its thread.
func (h *Host) start(opts Options) error {
	argv, env, err := commandLine(h, opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, h.output, h.output
	cmd.WaitDelay = 2 * time.Second
	// A process group of its own: an interrupt typed at the terminal is the test's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	h.cancel = cancel

	started := make(chan error)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(h.exited)
		err := h.placeAndStart(cmd)
		started <- err
		if err == nil {
			_ = cmd.Wait() // its console says how it ended
		}
	}()
	return <-started
}

// placeAndStart starts cmd in the cgroup of the host. Where systemd is PID 1, cmd is systemd-run,
// which makes a scope.
func (h *Host) placeAndStart(cmd *exec.Cmd) error {
	if systemdBooted() {
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("cannot start %s: %w", cmd.Path, err)
		}
		return h.record()
	}
	if err := makeCgroup(h.cgroup); err != nil {
		return err
	}
	fd, err := os.Open(h.cgroup)
	if err != nil {
		return err
	}
	defer fd.Close()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(fd.Fd())
	if err := h.record(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w", cmd.Path, err)
	}
	return nil
}

// Close kills everything in the host and removes all that is left of it. It may be called more than
// once.
func (h *Host) Close() error {
	h.closeOnce.Do(func() {
		h.closeErr = h.remove()
	})
	return h.closeErr
}

func (h *Host) remove() error {
	var errs []error
	if h.leader > 0 {
		// Its death takes all of its PID namespace along, and nspawn ends by itself.
		_ = syscall.Kill(h.leader, syscall.SIGKILL)
		select {
		case <-h.exited:
		case <-time.After(2 * time.Second):
		}
	}
	errs = append(errs, killCgroup(h.cgroup))
	if h.cancel != nil {
		h.cancel()
		<-h.exited
	}
	errs = append(errs, removeCgroup(h.cgroup), os.RemoveAll(h.dir), h.lock.Close())
	if unlock, err := lockRunDir(); err == nil {
		unlock() // removes it when this was the last host
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot remove host %s: %w", h.name, err)
	}
	return nil
}

// Name is the machine name of the host: unique, and its hostname.
func (h *Host) Name() string { return h.name }

// PID is the process ID of the host's systemd as seen from this process. /proc/PID/root is the
// host's root.
func (h *Host) PID() int { return h.leader }

// Console returns the last part (at most 64 KiB) of what the host has written to its console.
func (h *Host) Console() string { return h.output.String() }

// Done is closed when the host has ended, by Close or by itself (poweroff).
func (h *Host) Done() <-chan struct{} { return h.exited }

// tail is a writer that keeps the last 64 KiB.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	const limit = 64 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - limit; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
