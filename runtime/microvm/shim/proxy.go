package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/sdnotify"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/shim"
)

// Config is what magikshim proxy reads.
type Config struct {
	// Agent is where the VM's agent is.
	Agent client.Address `json:"agent"`
	// Timeout in milliseconds bounds all up to the container's start, the boot of the VM included;
	// 0: one minute.
	Timeout int64 `json:"timeoutMS,omitempty"`
	// Copies are sent, in this order, before the container is created.
	Copies []Copy `json:"copies,omitempty"`
	// Create is the container.
	Create wire.Create `json:"create"`
	// MessageFile, when not empty, is an existing file that gets the termination message.
	MessageFile string `json:"messageFile,omitempty"`
	// Log is the JSON log that gets the reason of a failed start, as that of an OCI runtime.
	Log string `json:"log,omitempty"`
}

// Copy is a volume that the VM gets a copy of.
type Copy struct {
	Volume string `json:"volume"` // in the VM
	Source string `json:"source"` // directory or file of this host
}

// defaultTimeout is how long a start may take when the configuration does not say.
const defaultTimeout = time.Minute

// Run is magikshim proxy. It returns the exit status of the container, or one of the Exit constants
// of [shim] when it could not be started ([shim.ExitTempFail]: the VM is gone or did not answer,
// and the container is not to blame); when a signal has killed the container, it does not return.
func Run(configPath string) int {
	// Next to no garbage is made, and nothing in parallel.
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(16 << 20)
	// It has fewer capabilities than root has in a container: one of another pod with hostPID could
	// look into it otherwise, and has the host by its root (ptrace(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		shim.Complain("magikshim proxy", "", err)
		return shim.ExitFailure
	}
	var config Config
	if err := shim.ReadConfig(configPath, &config); err != nil {
		shim.Complain("magikshim proxy", "", err)
		return shim.ExitUsage
	}
	p := &proxy{config: &config, client: client.New(config.Agent.Dialer())}
	session, err := p.start()
	if err != nil {
		shim.Complain("magikshim proxy", config.Log, err)
		if isGone(err) {
			return shim.ExitTempFail
		}
		return shim.ExitFailure
	}
	return p.follow(session)
}

// isGone says that the VM cannot be reached: it is gone, or has not come up.
func isGone(err error) bool {
	return errors.Is(err, client.ErrGone) || errors.Is(err, errTooLate)
}

var errTooLate = errors.New("the VM has not come up in time")

// proxy is one container.
type proxy struct {
	config  *Config
	client  *client.Client
	signals *signals
}

// start brings the container up and notifies the service manager.
func (p *proxy) start() (*client.Session, error) {
	timeout := defaultTimeout
	if p.config.Timeout > 0 {
		timeout = time.Duration(p.config.Timeout) * time.Millisecond
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, errTooLate)
	defer cancel()
	if err := p.awaitVM(ctx); err != nil {
		return nil, err
	}
	for _, c := range p.config.Copies {
		if err := p.client.Copy(ctx, c.Volume, c.Source); err != nil {
			return nil, err
		}
	}
	session, err := p.client.Create(ctx, p.config.Create)
	if err != nil {
		return nil, err
	}
	// From here on a signal is the container's; before, it ends this process.
	if p.signals, err = catchSignals(); err == nil {
		err = p.client.Start(ctx, p.config.Create.Container, p.config.Create.ID)
	}
	if err == nil {
		err = sdnotify.Notify("READY=1\nSTATUS=" + shim.StatusStarted)
	}
	if err != nil {
		session.Close()
		return nil, err
	}
	return session, nil
}

// awaitVM waits until the VM has booted and been configured.
func (p *proxy) awaitVM(ctx context.Context) error {
	for {
		pong, err := p.client.WaitReady(ctx)
		if err != nil {
			return err
		}
		if pong.Configured {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot start the container: %w: nobody has configured it", context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// follow copies the output until the container has ended, and ends likewise.
func (p *proxy) follow(session *client.Session) int {
	ctx, cancel := context.WithCancel(context.Background())
	forwarding := make(chan struct{})
	go func() {
		defer close(forwarding)
		p.signals.forward(ctx, p.client, p.config.Create.Container, p.config.Create.ID)
	}()
	// The files are hidden in a plain writer: writes block, which is the back-pressure that the
	// container is to feel.
	exit, err := session.Run(ctx, client.IO{Stdout: struct{ io.Writer }{os.Stdout}, Stderr: struct{ io.Writer }{os.Stderr}})
	cancel()
	<-forwarding
	if err != nil {
		// The VM has died, and the container with it. A process whose VM dies is killed.
		shim.Complain("magikshim proxy", "", err)
		die(unix.SIGKILL)
	}
	if err := writeMessage(p.config.MessageFile, exit.Message); err != nil {
		shim.Complain("magikshim proxy", "", err)
	}
	if exit.OOM {
		_ = sdnotify.Notify("STATUS=" + shim.StatusOOMKilled) // if that fails, it was a kill
	}
	if exit.Signal != 0 {
		die(unix.Signal(exit.Signal))
	}
	return exit.Code
}

// writeMessage writes the termination message to a file that exists. No symlink is followed.
func writeMessage(path string, message []byte) error {
	if path == "" || len(message) == 0 {
		return nil
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot write the termination message to %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.Write(message)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot write the termination message to %s: %w", path, err)
	}
	return nil
}
