package native

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
)

// execution is one process that is run in a container.
type execution struct {
	c      runtime.Running
	kind   *ociRuntime
	p      runtime.Process
	dir    string // its files, below the bundle
	cgroup string // its own, a child of the container's
	score  int    // oom_score_adj
}

// run makes what the process needs, runs it, and removes everything again.
func (x *execution) run(ctx context.Context) (status runtime.ExitStatus, err error) {
	id := "exec-" + newID()
	x.dir = filepath.Join(x.c.Bundle, id)
	x.cgroup = filepath.Join(x.c.Cgroup, id)
	if x.kind.subCgroup != "" {
		x.cgroup = filepath.Join(x.c.Cgroup, runtime.ContainerCgroup, id)
	}
	process, err := x.process(x.c.Bundle, x.c.PID)
	if err != nil {
		return status, err
	}
	if err := os.Mkdir(x.dir, 0o700); err != nil {
		return status, pod.WithKind(pod.Internal, err)
	}
	defer os.RemoveAll(x.dir)
	if err := atomicfile.SaveJSON(x.path("process.json"), process); err != nil {
		return status, pod.WithKind(pod.Internal, err)
	}
	if err := os.Mkdir(x.cgroup, 0o755); err != nil {
		return status, pod.Errorf(pod.Internal, "cannot make cgroup: %w", err)
	}
	defer x.removeCgroup()
	if x.p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, x.p.Timeout, errTimeout(x.p.Timeout))
		defer cancel()
	}
	return x.supervise(ctx)
}

// removeCgroup removes the cgroup of a process as soon as what was killed in it is gone. Processes that it has left behind on purpose stay in it until
// the container ends.
func (x *execution) removeCgroup() {
	if err := unix.Rmdir(x.cgroup); !errors.Is(err, unix.EBUSY) {
		return
	}
	x.c.Unit.Background(func(ctx context.Context) {
		for pause := time.Millisecond; pause < 4*time.Second; pause *= 2 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			if err := unix.Rmdir(x.cgroup); !errors.Is(err, unix.EBUSY) {
				return
			}
		}
	})
}

// pidName is the file that the OCI runtime writes the PID of an exec's process to.
const pidName = "pid"

// newID names an exec: 16 hexadecimal digits.
func newID() string {
	var data [8]byte
	_, _ = rand.Read(data[:]) // never fails (crypto/rand)
	return hex.EncodeToString(data[:])
}

// errTimeout is the cause of an exec that took too long.
type errTimeout time.Duration

func (e errTimeout) Error() string { return "it did not end within " + time.Duration(e).String() }

func (x *execution) path(name string) string { return filepath.Join(x.dir, name) }

// supervise runs the OCI runtime, in the cgroup of the process, and waits for both.
func (x *execution) supervise(ctx context.Context) (runtime.ExitStatus, error) {
	group, err := os.Open(x.cgroup)
	if err != nil {
		return runtime.ExitStatus{}, pod.WithKind(pod.Internal, err)
	}
	defer group.Close()
	if ctx.Err() != nil {
		return runtime.ExitStatus{}, pod.WithKind(pod.Unavailable, context.Cause(ctx))
	}
	argv := x.withScore(x.kind.execArgv(x.path("log"), x.path("process.json"), x.path(pidName), filepath.Base(x.cgroup), x.p.TTY, x.c.ID))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = x.kind.env(), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if x.p.TTY {
		t, err := x.openTerminal(cmd)
		if err != nil {
			return runtime.ExitStatus{}, err
		}
		defer t.close()
	} else {
		handOver(cmd, x.p)
	}
	letGo, err := x.c.Unit.Unseen(ctx, x.cgroup)
	if err != nil {
		return runtime.ExitStatus{}, err
	}
	if letGo != nil {
		defer letGo()
	}
	if err = cmd.Start(); err == nil {
		stop := context.AfterFunc(ctx, x.kill)
		x.letGoWhenEntered(cmd.Process.Pid, letGo)
		err = cmd.Wait()
		stop()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return x.status(ctx, cmd, err)
}

// handOver gives cmd the process's files. For those that are nil it gets pipes, too: through the host's /dev/null, which os/exec would take, root in a container could
// change its mode for the whole host.
func handOver(cmd *exec.Cmd, p runtime.Process) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(""), io.Discard, io.Discard
	cmd.WaitDelay = drainTime // what is left behind may keep those pipes open
	if p.Stdin != nil {
		cmd.Stdin = p.Stdin
	}
	if p.Stdout != nil {
		cmd.Stdout = p.Stdout
	}
	if p.Stderr != nil {
		cmd.Stderr = p.Stderr
	}
}

// withScore makes argv run with the OOM score of the container: the process would have the daemon's (crun exec leaves the score alone), and the
// daemon wants to be spared. Only the process itself can set it before it is more than one.
func (x *execution) withScore(argv []string) []string {
	if x.score == ownScore() {
		return argv
	}
	script := "echo " + strconv.Itoa(x.score) + ` > /proc/self/oom_score_adj; exec "$@"`
	return append([]string{"/bin/sh", "-c", script, "sh"}, argv...)
}

// ownScore is this process's oom_score_adj.
func ownScore() int {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	score, _ := strconv.Atoi(strings.TrimSpace(string(data))) // the kernel's own format
	return score
}

// kill ends all processes of this exec: what it has started, and the OCI runtime that waits for it.
func (x *execution) kill() {
	if err := os.WriteFile(filepath.Join(x.cgroup, "cgroup.kill"), []byte("1"), 0); err == nil && x.kind.ownGroup {
		return
	}
	// A kernel before 5.14 or an OCI runtime that puts the process elsewhere: one by one, until none is left.
	pids := []int{}
	if data, err := os.ReadFile(x.path(pidName)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	for range 100 {
		more, err := x.processes()
		pids = append(pids, more...)
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have just ended
		}
		if err != nil || len(pids) == 0 {
			return
		}
		pids = pids[:0]
		time.Sleep(time.Millisecond)
	}
}

// processes are those in the cgroup of this exec.
func (x *execution) processes() (pids []int, err error) {
	data, err := os.ReadFile(filepath.Join(x.cgroup, "cgroup.procs"))
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// status translates how the OCI runtime has ended: with the status of the process, or with an error of its own.
func (x *execution) status(ctx context.Context, cmd *exec.Cmd, err error) (runtime.ExitStatus, error) {
	if ctx.Err() != nil {
		killed := runtime.ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL)}
		if _, ok := errors.AsType[errTimeout](context.Cause(ctx)); ok {
			return killed, nil
		}
		return killed, pod.WithKind(pod.Unavailable, context.Cause(ctx))
	}
	if err == nil {
		return runtime.ExitStatus{}, nil
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return runtime.ExitStatus{}, pod.Errorf(pod.Internal, "cannot run %s: %w", x.kind.path, err)
	}
	if reason := crun.LastLogError(x.path("log")); reason != "" {
		if x.p.TTY && x.kind.consoleSocket && x.p.Stdout != nil { // else the OCI runtime has told it on the process's own files
			_, _ = x.p.Stdout.Write([]byte(reason + "\r\n"))
		}
		return runtime.ExitStatus{Code: notRunCode(reason)}, pod.Errorf(pod.Invalid, "%s", reason)
	}
	how := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if how.Signaled() {
		return runtime.ExitStatus{Code: 128 + int(how.Signal()), Signal: int(how.Signal())}, nil
	}
	status := runtime.ExitStatus{Code: how.ExitStatus()}
	if status.Code > 128 && status.Code <= 128+64 {
		status.Signal = status.Code - 128
	}
	return status, nil
}

// notRunCode is the exit code of a command that could not be run, as shells have it: 127 when there is none of that name, else 126.
func notRunCode(reason string) int {
	reason = strings.ToLower(reason)
	for _, text := range []string{"not found", "no such file"} {
		if strings.Contains(reason, text) {
			return runtime.ExitNotFound
		}
	}
	return runtime.ExitNotExecutable
}
