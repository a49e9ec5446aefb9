package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The status texts (sd_notify(3), STATUS=) of a container's unit. A unit that has ended without one never had a container as its main process. One that
// has ended with StatusCreated was started: systemd kills launch when the container fails at once.
const (
	StatusCreated    = "created"
	StatusStarted    = "started"
	StatusNotStarted = "not started" // the OCI runtime could not, and its log tells why
	// StatusOOMKilled is the last one of a container in a machine: its memory was used up there, of which systemd knows nothing.
	StatusOOMKilled = "killed: out of memory"
)

// barrierTimeout is how long the service manager may take to deal with a notification.
const barrierTimeout = 60 * time.Second

// createAndStart makes the OCI runtime create the container, tells the service manager its first process, and starts it.
//
// The order is what counts. systemd refuses a main process that has ended already, and the exit status of a process that it does not know is
// lost: so it must have accepted the process while that still waits for its start. It must also have seen READY=1 by then, or an end at once
// would be a failed start (result "protocol"). And the process must be systemd's own child, as it is when the OCI runtime has exited and nobody between is
// a subreaper: of another's child systemd asks at READY=1 whether it is alive, and if it has ended the unit is "exited" without an exit
// status; nor does it wait for one when it stops the unit, but kills it at once. Errors: an [*exec.ExitError] is that of the OCI runtime.
func createAndStart(config *LaunchConfig, manager *notifier) error {
	defer manager.close()
	if !filepath.IsAbs(config.Start[0]) || !filepath.IsAbs(config.PIDFile) {
		return errors.New("cannot start the container: the path of the OCI runtime or of the PID file is not absolute")
	}
	if err := os.Remove(config.PIDFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove old PID file: %w", err)
	}
	if err := tidyProcess(); err != nil {
		return err
	}
	if err := runOCI(config, config.Argv); err != nil {
		return whoIsToBlame(config, err)
	}
	first, err := openFirst(config.PIDFile)
	if err != nil {
		return err
	}
	defer unix.Close(first.pidfd)
	if config.FirstCgroup != "" {
		if err := enterSubCgroup(first.pid, config.FirstCgroup); err != nil {
			_ = unix.PidfdSendSignal(first.pidfd, unix.SIGKILL, nil, 0) // it may have ended by itself
			return err
		}
	}
	err = manager.send("MAINPID=" + strconv.Itoa(first.pid) + "\nREADY=1\nSTATUS=" + StatusCreated)
	if err == nil {
		err = manager.barrier(barrierTimeout)
	}
	if err == nil {
		err = runOCI(config, config.Start)
	}
	if err == nil {
		err = manager.send("STATUS=" + StatusStarted)
	}
	if err != nil {
		_ = manager.send("STATUS=" + StatusNotStarted)
		_ = unix.PidfdSendSignal(first.pidfd, unix.SIGKILL, nil, 0) // it may have ended by itself
	}
	return err
}

// whoIsToBlame makes a failed creation one for which the container is not to blame, when the holder of the namespaces has died meanwhile: the OCI
// runtime opens them too.
func whoIsToBlame(config *LaunchConfig, failed error) error {
	ns, err := openNamespace(config.MountNS, config.Owner)
	if err != nil {
		return fmt.Errorf("cannot create the container: %w (%s)", err, failed)
	}
	unix.Close(ns)
	return failed
}

// runOCI runs the OCI runtime and waits for it. Stdin, stdout and stderr become the container's.
func runOCI(config *LaunchConfig, argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{}, config.Env...) // never nil, which would be our own
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err == nil || ok {
		return err
	}
	return fmt.Errorf("cannot execute the OCI runtime %s: %w", argv[0], err)
}

// process is a process that cannot become another one.
type process struct{ pid, pidfd int }

// openFirst opens the process that the OCI runtime's PID file names, which waits for its start.
func openFirst(pidFile string) (process, error) {
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return process{}, fmt.Errorf("cannot read the PID file of the OCI runtime: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return process{}, fmt.Errorf("cannot parse the PID file of the OCI runtime: %q", data[:min(len(data), 40)])
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{}, fmt.Errorf("cannot open the container's first process %d: %w", pid, err)
	}
	return process{pid, pidfd}, nil
}

// Notify tells the service manager (sd_notify(3)). Without $NOTIFY_SOCKET it is an error.
func Notify(state string) error {
	manager, err := dialManager()
	if err != nil {
		return err
	}
	defer manager.close()
	return manager.send(state)
}

// notifier is a connection to the service manager.
type notifier struct{ fd int }

// dialManager connects to $NOTIFY_SOCKET.
func dialManager() (*notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, errors.New("cannot notify the service manager: NOTIFY_SOCKET is not set; launch is started by systemd, in a unit of Type=notify")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot notify the service manager: socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot notify the service manager at %s: %w", path, err)
	}
	return &notifier{fd}, nil
}

func (n *notifier) close() { unix.Close(n.fd) }

func (n *notifier) send(state string) error {
	if err := unix.Send(n.fd, []byte(state), unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("cannot notify the service manager: %w", err)
	}
	return nil
}

// barrier waits until the service manager has dealt with all that was sent before: it gets the writing end of a pipe, which it closes then
// (sd_notify_barrier(3)).
func (n *notifier) barrier(timeout time.Duration) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("cannot wait for the service manager: pipe: %w", err)
	}
	defer unix.Close(pipe[0])
	err := unix.Sendmsg(n.fd, []byte("BARRIER=1"), unix.UnixRights(pipe[1]), nil, unix.MSG_NOSIGNAL)
	unix.Close(pipe[1])
	if err != nil {
		return fmt.Errorf("cannot wait for the service manager: %w", err)
	}
	for deadline := time.Now().Add(timeout); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("cannot wait for the service manager: no answer in %s", timeout)
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(pipe[0])}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for the service manager: poll: %w", err)
		}
		if ready > 0 {
			return nil // POLLHUP
		}
	}
}
