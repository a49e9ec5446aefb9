//go:build linux

package jail

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envFiltered is set in the process that filters itself.
const envFiltered = "WASM_TEST_FILTERED"

// TestFilterCalls has a process filter its system calls, and try what a guest that has broken out
// of its module would, and what guests need.
func TestFilterCalls(t *testing.T) {
	if dir := os.Getenv(envFiltered); dir != "" {
		testFiltered(t, dir)
		return
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^TestFilterCalls$", "-test.v")
	cmd.Env = append(os.Environ(), envFiltered+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestFilterCalls") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func testFiltered(t *testing.T, dir string) {
	// A thread that is there before must be filtered, too.
	before := make(chan func())
	verdict := make(chan error)
	go func() {
		goruntime.LockOSThread()
		f := <-before
		f()
	}()
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		t.Fatalf("%v (with cgo it cannot work: try CGO_ENABLED=0)", errno)
	}
	if err := filterCalls(&Config{}); err != nil {
		t.Fatal(err)
	}
	forbidden := map[string][4]uintptr{
		"execve": {unix.SYS_EXECVE}, "execveat": {unix.SYS_EXECVEAT}, "clone without CLONE_THREAD": {unix.SYS_CLONE, uintptr(unix.SIGCHLD)}, "clone3": {unix.SYS_CLONE3},
		"mount": {unix.SYS_MOUNT}, "open_tree": {unix.SYS_OPEN_TREE}, "move_mount": {unix.SYS_MOVE_MOUNT}, "pivot_root": {unix.SYS_PIVOT_ROOT}, "chroot": {unix.SYS_CHROOT},
		"unshare": {unix.SYS_UNSHARE}, "setns": {unix.SYS_SETNS}, "ptrace": {unix.SYS_PTRACE}, "process_vm_readv": {unix.SYS_PROCESS_VM_READV},
		"kill": {unix.SYS_KILL, uintptr(os.Getppid())}, "tgkill of another": {unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid())}, "pidfd_open": {unix.SYS_PIDFD_OPEN, uintptr(os.Getppid())},
		"connect": {unix.SYS_CONNECT}, "socketpair": {unix.SYS_SOCKETPAIR}, "bpf": {unix.SYS_BPF}, "keyctl": {unix.SYS_KEYCTL}, "io_uring_setup": {unix.SYS_IO_URING_SETUP},
		"userfaultfd": {unix.SYS_USERFAULTFD}, "memfd_create": {unix.SYS_MEMFD_CREATE}, "prctl": {unix.SYS_PRCTL, unix.PR_GET_NAME}, "ioctl": {unix.SYS_IOCTL}, "setuid": {unix.SYS_SETUID},
		"personality": {unix.SYS_PERSONALITY, 0xffffffff}, "perf_event_open": {unix.SYS_PERF_EVENT_OPEN}, "mknodat": {unix.SYS_MKNODAT}, "chmod": {unix.SYS_FCHMODAT},
	}
	for name, call := range forbidden {
		// The other arguments are null: what was allowed would fail with something else, or succeed.
		if r, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != unix.EPERM {
			if r == 0 && name == "clone without CLONE_THREAD" {
				unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // this is a child
			}
			t.Errorf("%s: %v (%d), want it to be refused", name, errno, r)
		}
	}
	before <- func() {
		var err error
		if _, _, errno := unix.RawSyscall(unix.SYS_UNSHARE, 0, 0, 0); errno != unix.EPERM {
			err = fmt.Errorf("a thread from before may unshare: %v", errno)
		}
		verdict <- err
	}
	if err := <-verdict; err != nil {
		t.Error(err)
	}
	if err := needed(dir); err != nil {
		t.Error(err)
	}
}

// needed does what guests make their process do.
func needed(dir string) error {
	var threads sync.WaitGroup
	for range 4 {
		threads.Go(func() {
			goruntime.LockOSThread() // each needs a thread, and takes it along
			time.Sleep(10 * time.Millisecond)
		})
	}
	threads.Wait()
	goruntime.GC()
	path, moved := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	var errs []error
	step := func(err error) { errs = append(errs, err) }
	step(os.WriteFile(path, []byte("x"), 0o600))
	step(os.Truncate(path, 100))
	step(os.Chtimes(path, time.Now(), time.Now()))
	step(os.Rename(path, moved))
	step(os.Link(moved, path))
	step(os.Symlink("b", filepath.Join(dir, "c")))
	_, err := os.Readlink(filepath.Join(dir, "c"))
	step(err)
	_, err = os.ReadDir(dir)
	step(err)
	step(os.Mkdir(filepath.Join(dir, "d"), 0o700))
	step(os.RemoveAll(filepath.Join(dir, "d")))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	step(err)
	if err == nil {
		step(l.(*net.TCPListener).SetDeadline(time.Now()))
		if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			step(fmt.Errorf("accept: %w", err))
		}
		step(l.Close())
	}
	return errors.Join(errs...)
}
