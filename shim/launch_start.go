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

	"github.com/magikrun/magikpod/internal/mounttree"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/sdnotify"
)

// The status texts (sd_notify(3), STATUS=) of a container's unit. A unit that has ended without one
// never had a container as its main process. One that has ended with StatusCreated was started:
// systemd kills launch when the container fails at once.
const (
	StatusCreated    = "created"
	StatusStarted    = "started"
	StatusNotStarted = "not started" // the OCI runtime could not, and its log says why
	// StatusOOMKilled is the last one of a container in a VM: its memory was used up there, of
	// which systemd knows nothing.
	StatusOOMKilled = "killed: out of memory"
)

// barrierTimeout is how long the service manager may take to deal with a notification.
const barrierTimeout = 60 * time.Second

// createAndStart makes the OCI runtime create the container, notifies the service manager of its
// first process, and starts it.
//
// The order is what counts. systemd refuses a main process that has ended already, and the exit
// status of a process that it does not know is lost: so it must have accepted the process while
// that still waits for its start. It must also have seen READY=1 by then, or an end at once would
// be a failed start (result "protocol"). And the process must be systemd's own child, as it is when
// the OCI runtime has exited and nobody between is a subreaper: of another's child systemd asks at
// READY=1 whether it is alive, and if it has ended the unit is "exited" without an exit status; nor
// does it wait for one when it stops the unit, but kills it at once. Errors: an [*exec.ExitError]
// is that of the OCI runtime.
func createAndStart(config *LaunchConfig, manager *sdnotify.Conn) error {
	defer manager.Close()
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
	err = manager.Send("MAINPID=" + strconv.Itoa(first.pid) + "\nREADY=1\nSTATUS=" + StatusCreated)
	if err == nil {
		err = manager.Barrier(barrierTimeout)
	}
	if err == nil {
		err = runOCI(config, config.Start)
	}
	if err == nil {
		err = manager.Send("STATUS=" + StatusStarted)
	}
	if err != nil {
		_ = manager.Send("STATUS=" + StatusNotStarted)
		_ = unix.PidfdSendSignal(first.pidfd, unix.SIGKILL, nil, 0) // it may have ended by itself
	}
	return err
}

// whoIsToBlame makes a failed creation one for which the container is not to blame, when the holder
// of the namespaces has died meanwhile: the OCI runtime opens them too.
func whoIsToBlame(config *LaunchConfig, failed error) error {
	ns, err := nsfile.Open(config.MountNS, config.Owner)
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
	if config.Cloned != "" {
		if tree, err := mounttree.Clone(argv[0], unix.MOUNT_ATTR_RDONLY); err == nil { // else it makes one itself
			defer tree.Close()
			cmd.Path, cmd.Env = tree.Path(), append(cmd.Env, config.Cloned)
		}
	}
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
