package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/confine"
)

// ReapCommand is the argument with which a program starts itself as PID 1 of a pod's PID namespace:
// it calls [Reap].
const ReapCommand = "reap"

// reapReady is the descriptor on which [Reap] says why it cannot; it is closed when the jail is.
const reapReady = 3

// FirstProcess is a command that becomes the first process of a new PID namespace.
type FirstProcess struct {
	Cmd            *exec.Cmd
	reading, ready *os.File
}

// NewFirstProcess makes the command. name is what ps shows.
func NewFirstProcess(name string) (*FirstProcess, error) {
	reading, ready, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", ReapCommand)
	cmd.Args[0] = name
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=20"}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	return &FirstProcess{cmd, reading, ready}, nil
}

// Jailed waits, after the command was started or failed to, until the process is in its jail.
// Nobody may join the PID namespace before.
func (r *FirstProcess) Jailed() error {
	_ = r.ready.Close()
	defer r.reading.Close()
	text, err := io.ReadAll(io.LimitReader(r.reading, 4096))
	if err == nil && len(text) > 0 {
		err = errors.New(string(text))
	}
	return err
}

// reaper is the first process of the pod's PID namespace.
type reaper struct{ pid, pidfd int }

// startReaper starts this program once more in a new PID namespace, and writes its PID to pidFile.
func startReaper(pidFile string) (*reaper, error) {
	first, err := NewFirstProcess("magikshim")
	if err != nil {
		return nil, fmt.Errorf("cannot make the pod's PID namespace: %w", err)
	}
	r := &reaper{pidfd: -1}
	first.Cmd.SysProcAttr.PidFD = &r.pidfd
	err = first.Cmd.Start()
	started := err == nil
	err = errors.Join(err, first.Jailed())
	if err == nil && r.pidfd < 0 {
		err = errors.New("the kernel has no pidfd")
	}
	if err == nil {
		r.pid = first.Cmd.Process.Pid
		temporary := pidFile + ".new"
		err = os.WriteFile(temporary, []byte(strconv.Itoa(r.pid)+"\n"), 0o600)
		if err == nil {
			err = os.Rename(temporary, pidFile)
		}
	}
	if err != nil {
		if started {
			_ = first.Cmd.Process.Kill()
			_ = first.Cmd.Wait()
		}
		return nil, fmt.Errorf("cannot make the pod's PID namespace: %w", err)
	}
	return r, nil
}

// stop ends the namespace: the kernel kills what is left in it.
func (r *reaper) stop() {
	_ = unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0)
	for unix.Waitid(unix.P_PIDFD, r.pidfd, nil, unix.WEXITED, nil) == unix.EINTR {
	}
	unix.Close(r.pidfd)
}

// Reap is PID 1 of a pod's PID namespace: orphans are collected until it is killed. No signal from
// inside the namespace ends it, so that it outlives the containers.
//
// The pod's containers see this process, and one with CAP_SYS_PTRACE has the powers of all that it
// sees (ptrace(2), "Ptrace access mode checking"). So there is nothing to be had: no file system,
// no capability, no descriptor, no system call, and of this program neither the file nor the
// memory. What is left is [reapProgram]. It returns the exit status when it fails. The caller is as
// that of [Pause].
func Reap() int {
	if os.Getpid() != 1 {
		os.Stderr.WriteString("magikshim reap: cannot run: not PID 1 of a namespace\n")
		return ExitUsage
	}
	err := reap()
	_, _ = unix.Write(reapReady, []byte(strings.ReplaceAll(err.Error(), "\n", " ")))
	return ExitFailure
}

// reap returns the reason why this process is not the program.
func reap() error {
	// A program that its user may not read is not dumpable from its first instruction on (execve(2)).
	program, err := sealedProgram(reapProgram(), 0o111)
	if err != nil {
		return fmt.Errorf("make the first process's program: %w", err)
	}
	// It is kept over execve, and makes the kernel collect all children, adopted ones among them
	// (wait(2), NOTES). All other signals have their default action, which PID 1 of a namespace
	// does not take, but for SIGKILL and SIGSTOP from outside (pid_namespaces(7)).
	signal.Ignore(syscall.SIGCHLD)
	if err := enterEmptyRoot(); err != nil {
		return err
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if err := unix.CloseRange(0, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	argv, err := syscall.SlicePtrFromStrings(os.Args)
	if err != nil {
		return err
	}
	noEnv := []*byte{nil}
	// From the filter on this thread has next to no system calls, and the runtime must not need one:
	// to give it time after a call (futex), to preempt it, or to end after that has failed. So it does
	// not learn of the calls, and no signal comes. The mask is kept over execve, too.
	all := unix.Sigset_t{}
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	filter := reapFilter(program)
	return fmt.Errorf("execute the first process's program: %w", executeFiltered(&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}, program, argv, noEnv))
}

// executeFiltered is seccomp(2) and executeFD with nothing between them. It returns only when one of
// them fails.
//
//go:nosplit
func executeFiltered(filter *unix.SockFprog, fd int, argv, env []*byte) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(filter)))
	if errno != 0 {
		return errno
	}
	return executeFD(fd, argv, env)
}

// executeFD is execveat(2) of a descriptor. It returns only when that fails.
//
//go:nosplit
func executeFD(fd int, argv, env []*byte) unix.Errno {
	var empty byte
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])), unix.AT_EMPTY_PATH, 0)
	runtime.KeepAlive(argv)
	return errno
}

// enterEmptyRoot gives this thread a mount namespace with nothing in it but an empty file system
// that cannot be written to. The other threads stay where they are, and end with execve.
func enterEmptyRoot() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an empty root: fsopen: %w", err)
	}
	for key, value := range map[string]string{"mode": "0555", "size": "4k", "nr_inodes": "1"} {
		if err == nil {
			err = unix.FsconfigSetString(fs, key, value)
		}
	}
	if err == nil {
		err = unix.FsconfigSetFlag(fs, "ro") // for all mounts of it
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return fmt.Errorf("make an empty root: fsconfig: %w", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fmt.Errorf("make an empty root: fsmount: %w", err)
	}
	// /proc exists: this program was started by a path in it.
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("make an empty root: move_mount: %w", err)
	}
	if err := unix.Fchdir(tree); err != nil {
		return err
	}
	return confine.EnterRoot()
}

// dropCapabilities gives up all capabilities of this thread, for good; of the other threads execve
// leaves none.
func dropCapabilities() error {
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // the kernel has no more
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
