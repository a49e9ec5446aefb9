package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// startFirst makes a PID namespace and returns the PID of its first process here.
func startFirst(t *testing.T) int {
	t.Helper()
	needRoot(t)
	r, err := startReaper(filepath.Join(t.TempDir(), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	return r.pid
}

// TestReapSlowly: the first process gets into its jail also when the call that loads its filter takes
// so long that the runtime gives its processor to another thread.
func TestReapSlowly(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread() // one thread traces
	defer runtime.UnlockOSThread()
	first, err := NewFirstProcess("magikshim")
	if err != nil {
		t.Fatal(err)
	}
	first.Cmd.SysProcAttr.Ptrace = true
	if err := first.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := first.Cmd.Process.Pid
	t.Cleanup(func() { _ = first.Cmd.Process.Kill(); _ = first.Cmd.Wait() })
	jailed := make(chan error, 1)
	go func() { jailed <- first.Jailed() }()
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		t.Fatalf("it has not stopped at its execution: %v, %v", status, err)
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		t.Fatal(err)
	}
	for call, deliver := uint64(0), 0; ; {
		if err := unix.PtraceSyscall(pid, deliver); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil || !status.Stopped() {
			t.Fatalf("it has not stopped at a system call: %v, %v", status, err)
		}
		if deliver = int(status.StopSignal()); deliver != int(unix.SIGTRAP|0x80) {
			continue
		}
		deliver = 0
		var info struct { // struct ptrace_syscall_info, ptrace(2)
			Op     uint8
			_      [23]byte
			Number uint64
			_      [64]byte
		}
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(pid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
			t.Fatal(errno)
		}
		if info.Op == unix.PTRACE_SYSCALL_INFO_ENTRY {
			call = info.Number
		} else if call == unix.SYS_SECCOMP {
			break
		}
	}
	time.Sleep(200 * time.Millisecond)
	if err := unix.PtraceDetach(pid); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-jailed:
		if err != nil {
			t.Errorf("it is not in its jail: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it has not got into its jail")
	}
}

// TestReapJail: what a process with CAP_SYS_PTRACE gets by looking at the first process of its PID
// namespace is worth nothing.
func TestReapJail(t *testing.T) {
	first := startFirst(t)
	proc := fmt.Sprintf("/proc/%d/", first)
	waitForComm(t, strconv.Itoa(first), "magikshim") // the program's first deed
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"CapInh:\t0+", "CapPrm:\t0+", "CapEff:\t0+", "CapBnd:\t0+", "CapAmb:\t0+", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1", "Name:\tmagikshim", "NSpid:.*\t1",
	} {
		if !regexp.MustCompile("(?m)^" + want + "$").Match(status) {
			t.Errorf("its status is not %q:\n%s", want, status)
		}
	}
	for _, name := range []string{"fd", "root", "cwd", "map_files"} {
		list, err := os.ReadDir(proc + name + "/")
		if name == "map_files" { // only its own program
			for _, file := range list {
				if link, err := os.Readlink(proc + "map_files/" + file.Name()); err != nil || !strings.HasPrefix(link, "/memfd:") {
					t.Errorf("it has %s in its memory (%v)", link, err)
				}
			}
			continue
		}
		if err != nil || len(list) > 0 {
			t.Errorf("%s has %v (%v)", name, list, err)
		}
	}
	for _, name := range []string{"environ", "mountinfo"} {
		data, err := os.ReadFile(proc + name)
		if err != nil || name == "environ" && len(data) > 0 || name == "mountinfo" && strings.Count(string(data), "\n") != 1 {
			t.Errorf("%s is %q (%v)", name, data, err)
		}
	}
	if err := os.Mkdir(proc+"root/x", 0o700); !errors.Is(err, unix.EROFS) {
		t.Errorf("its root can be written to: %v", err)
	}
	var own, root unix.Stat_t
	if err := errors.Join(unix.Stat("/", &own), unix.Stat(proc+"root/", &root)); err != nil || own.Dev == root.Dev {
		t.Errorf("its root is on the device of the host's (%v)", err)
	}
	if cmdline, err := os.ReadFile(proc + "cmdline"); err != nil || string(cmdline) != "magikshim\x00reap\x00" {
		t.Errorf("its command line is %q (%v)", cmdline, err)
	}
}

// TestReapSealed: the program cannot be written to, whoever opens it.
func TestReapSealed(t *testing.T) {
	exe := fmt.Sprintf("/proc/%d/exe", startFirst(t))
	if f, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
		_, err = f.Write([]byte("x"))
		f.Close()
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("its program can be written to: %v", err)
		}
	}
	if err := os.Truncate(exe, 0); err == nil {
		t.Error("its program can be cut")
	}
	own, err := os.Stat("/proc/self/exe")
	theirs, theirErr := os.Stat(exe)
	if err = errors.Join(err, theirErr); err != nil || os.SameFile(own, theirs) || theirs.Size() > 4096 {
		t.Errorf("its program is %v (%v)", theirs, err)
	}
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const want = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals != want {
		t.Errorf("its seals are %#x, want %#x (%v)", seals, want, err)
	}
}

// seenByRoot is what of a process a root without CAP_SYS_PTRACE can open, as it is in most containers.
func seenByRoot(t *testing.T, pid int) string {
	t.Helper()
	const script = `cd "$1"
		for f in root cwd exe ns/mnt; do readlink $f >/dev/null && echo $f; done
		for f in environ maps mem; do (exec <$f) && echo $f; done
		true`
	cmd := exec.Command("setpriv", "--bounding-set=-all,+chown", "--inh-caps=-all", "/bin/sh", "-c", script, "sh", fmt.Sprintf("/proc/%d", pid))
	seen, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(seen)
}

// TestReapNotDumpable: without capabilities, which is all that keeps others of the same user away
// otherwise, it is still not to be looked at.
func TestReapNotDumpable(t *testing.T) {
	if seen := seenByRoot(t, startFirst(t)); seen != "" {
		t.Errorf("root without CAP_SYS_PTRACE sees %q of the first process", seen)
	}
	other := exec.Command("setpriv", "--bounding-set=-all", "--inh-caps=-all", "sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	waitForComm(t, strconv.Itoa(other.Process.Pid), "sleep")
	if seen := seenByRoot(t, other.Process.Pid); !strings.HasPrefix(seen, "root\n") {
		t.Errorf("it sees %q of another process without capabilities: this test shows nothing", seen)
	}
}

// TestReapOutlives: no signal ends it but SIGKILL from outside, and orphans of all kinds are collected.
func TestReapOutlives(t *testing.T) {
	first := startFirst(t)
	pid := strconv.Itoa(first)
	// In the namespace PID 1 is the first process.
	script := `for s in TERM INT HUP QUIT PIPE CHLD USR1 ALRM SEGV KILL STOP; do kill -$s 1; done; for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.0$i; kill -9 $$) & done; exit 0`
	for range 3 {
		if out, err := exec.Command("nsenter", "-t", pid, "-p", "sh", "-c", "("+script+") & exit 0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGCHLD} {
		if err := unix.Kill(first, sig); err != nil {
			t.Error(err)
		}
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		children, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
		if err == nil && len(strings.TrimSpace(string(children))) == 0 {
			return
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("the namespace's first process has children %q (%v)", children, err)
		}
	}
}
