package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/sdnotify"
	"github.com/magikrun/magikpod/runtime/crun"
)

// Launch makes a container's mounts in a copy of the pod's mount namespace and becomes the OCI
// runtime, or, with [LaunchConfig.Start], makes it create and start the container. It returns the
// exit status: that of an OCI runtime that has failed, else one of the Exit constants. The caller
// must be on the process's main thread, locked to it (runtime.LockOSThread in an init function):
// only the thread that calls execve keeps its namespaces.
//
// The reason of a failure is one line on stderr and, for the daemon, an entry in the OCI runtime's
// JSON log.
func Launch(configPath string) int {
	var config LaunchConfig
	if err := ReadConfig(configPath, &config); err != nil {
		Complain("magikshim launch", "", err)
		return ExitUsage
	}
	err := launch(&config)
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		// The OCI runtime has said why itself.
		return max(exit.ExitCode(), ExitFailure)
	}
	Complain("magikshim launch", config.Log, err)
	if errors.Is(err, nsfile.ErrGone) {
		return ExitTempFail
	}
	return ExitFailure
}

// launch returns the reason why this process is not the OCI runtime, or nil when the container was
// started.
func launch(config *LaunchConfig) error {
	if len(config.Argv) == 0 || !filepath.IsAbs(config.Argv[0]) {
		return errors.New("cannot run the OCI runtime: its path is missing or not absolute")
	}
	if config.MountNS == "" {
		return errors.New("cannot open the pod's mount namespace: its path is missing")
	}
	var manager *sdnotify.Conn
	if len(config.Start) > 0 {
		// Before the mount namespace is left: the socket's path is the host's.
		var err error
		manager, err = sdnotify.Dial()
		if errors.Is(err, sdnotify.ErrUnset) {
			err = fmt.Errorf("%w; launch is started by systemd, in a unit of Type=notify", err)
		}
		if err != nil {
			return err
		}
	}
	runtime.LockOSThread()
	if err := (namespaces{config.NetNS, config.IPCNS, config.UTSNS, config.MountNS}).join(config.Owner); err != nil {
		return err
	}
	if err := copyMountNS(); err != nil {
		return err
	}
	if err := config.Rootfs.Mount(); err != nil {
		return err
	}
	for _, d := range config.Destinations {
		if err := checkDestination(config.Rootfs.Target, d); err != nil {
			return err
		}
	}
	for i := range config.Binds {
		if err := config.Binds[i].Mount(); err != nil {
			return err
		}
	}
	if config.SubCgroup != "" {
		if err := enterSubCgroup(0, config.SubCgroup); err != nil {
			return err
		}
	}
	if manager != nil {
		return createAndStart(config, manager)
	}
	return become(config)
}

// namespaces are the paths of namespaces of a pod; empty: stay in the one of the host.
type namespaces struct{ net, ipc, uts, mount string }

// join opens all of them before it joins the first, because the paths are those of the present
// mount namespace. The thread must be locked.
func (n namespaces) join(owner nsfile.Owner) error {
	list := []struct {
		path, name string
		kind, fd   int
	}{
		{n.net, "network", unix.CLONE_NEWNET, -1}, {n.ipc, "IPC", unix.CLONE_NEWIPC, -1}, {n.uts, "UTS", unix.CLONE_NEWUTS, -1}, {n.mount, "mount", unix.CLONE_NEWNS, -1},
	}
	for i := range list {
		ns := &list[i]
		if ns.path == "" {
			continue
		}
		var err error
		if ns.fd, err = nsfile.Open(ns.path, owner); err != nil {
			return fmt.Errorf("cannot open the pod's %s namespace: %w", ns.name, err)
		}
		defer unix.Close(ns.fd)
	}
	for _, ns := range list {
		if ns.fd < 0 {
			continue
		}
		if ns.kind == unix.CLONE_NEWNS {
			// setns(2): a thread that shares its file system information cannot change the mount
			// namespace.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("cannot join the pod's mount namespace: unshare: %w", err)
			}
		}
		if err := unix.Setns(ns.fd, ns.kind); err != nil {
			return fmt.Errorf("cannot join the pod's %s namespace: setns: %w", ns.name, err)
		}
	}
	return nil
}

// copyMountNS gives this thread a copy of its mount namespace, into which mounts still come from
// the host and out of which none go.
func copyMountNS() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make the container's mount namespace: unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot make the container's mount namespace: make slave: %w", err)
	}
	return nil
}

// enterSubCgroup moves a process, 0 for this one, to a child of its cgroup (version 2).
func enterSubCgroup(pid int, name string) error {
	if name != filepath.Base(name) || name == "." || name == ".." {
		return fmt.Errorf("cannot enter cgroup %q: not a name", name)
	}
	process := "self"
	if pid > 0 {
		process = strconv.Itoa(pid)
	}
	data, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return fmt.Errorf("cannot enter cgroup %q: %w", name, err)
	}
	for line := range strings.Lines(string(data)) {
		own, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		dir := filepath.Join(cgroup.Root(), own, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot make cgroup: %w", err)
		}
		if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("cannot enter cgroup: %w", err)
		}
		return nil
	}
	return fmt.Errorf("cannot enter cgroup %q: it is in no cgroup of version 2", name)
}

// become replaces this process by the OCI runtime, which gets stdin, stdout and stderr and no other
// descriptor.
func become(config *LaunchConfig) error {
	// A container that ends at once must not be reparented to the service manager while the OCI
	// runtime, the main process of the unit until it has written the PID file, still works: it
	// stays our zombie until then. The attribute survives execve.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become a subreaper: %w", err)
	}
	if err := tidyProcess(); err != nil {
		return err
	}
	env := config.Env
	if socket := os.Getenv("NOTIFY_SOCKET"); config.Notify && socket != "" {
		env = append(env[:len(env):len(env)], "NOTIFY_SOCKET="+socket)
	}
	err := unix.Exec(config.Argv[0], config.Argv, env)
	return fmt.Errorf("cannot execute the OCI runtime %s: %w", config.Argv[0], err)
}

// tidyProcess prepares this process for what it starts.
func tidyProcess() error {
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("cannot close descriptors: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("cannot change directory: %w", err)
	}
	return nil
}

// Complain writes one line to stderr and, when log is the path of one, one entry to the log, in
// crun's and runc's JSON format. program is who says it.
func Complain(program, log string, err error) {
	text := program + ": " + strings.ReplaceAll(err.Error(), "\n", " ")
	os.Stderr.WriteString(text + "\n")
	if log == "" {
		return
	}
	f, openErr := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if openErr != nil {
		os.Stderr.WriteString(program + ": cannot write " + log + ": " + openErr.Error() + "\n")
		return
	}
	defer f.Close()
	_ = crun.LogError(f, text) // stderr has it
}
