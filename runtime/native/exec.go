package native

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/cgroup"
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
	spec   []byte // what the OCI runtime is to run
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
	if x.spec, err = json.Marshal(process); err != nil {
		return status, pod.WithKind(pod.Internal, err)
	}
	if err := os.Mkdir(x.dir, 0o700); err != nil {
		return status, pod.WithKind(pod.Internal, err)
	}
	defer os.RemoveAll(x.dir)
	if err := os.Mkdir(x.cgroup, 0o755); err != nil {
		return status, pod.Errorf(pod.Internal, "cannot make cgroup: %w", err)
	}
	defer x.c.Unit.Background(x.removeCgroup)
	if x.p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, x.p.Timeout, errTimeout(x.p.Timeout))
		defer cancel()
	}
	return x.supervise(ctx)
}

// removeTime is how long killed processes may take to be gone.
const removeTime = 4 * time.Second

// removeCgroup removes the cgroup of a process as soon as what was killed in it is gone. Processes
// that it has left behind on purpose stay in it until the container ends.
func (x *execution) removeCgroup(ctx context.Context) {
	_ = cgroup.RemoveWithin(x.cgroup, removeTime, ctx.Done())
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
	argv := x.kind.execArgv(x.path("log"), specPath, x.path(pidName), filepath.Base(x.cgroup), x.p.TTY, x.c.ID)
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
	thaw, err := x.c.Unit.Unseen(ctx, x.cgroup)
	if err != nil {
		return runtime.ExitStatus{}, err
	}
	if thaw != nil {
		defer thaw()
	}
	if err = x.start(cmd); err == nil {
		stop := context.AfterFunc(ctx, x.kill)
		x.thawWhenEntered(cmd.Process.Pid, thaw)
		err = cmd.Wait()
		stop()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return x.status(ctx, cmd, err)
}

// handOver gives cmd the process's files. For those that are nil it gets pipes, too: through the
// host's /dev/null, which os/exec would take, root in a container could change its mode for the
// whole host.
func handOver(cmd *exec.Cmd, p runtime.Process) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(""), io.Discard, io.Discard
	cmd.WaitDelay = crun.DrainTime // what is left behind may keep those pipes open
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

// specPath is where the OCI runtime reads what it is to run: the second of cmd.ExtraFiles. The
// first is a terminal's (crun.ConsolePath).
const specPath = "/proc/self/fd/4"

// start starts the OCI runtime, and only then says what it is to run. By that time the OCI runtime
// has the OOM score of the container, and passes it on: the process would have the daemon's (crun
// exec leaves the score alone), and the daemon wants to be spared.
func (x *execution) start(cmd *exec.Cmd) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.ExtraFiles = append(append(cmd.ExtraFiles, nil)[:1], read)
	err = x.kind.start(cmd)
	_ = read.Close()
	if err != nil {
		_ = write.Close()
		return err
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte(strconv.Itoa(x.score)), 0) // it may have just ended
	go func() {                                                                                                // it may be more than a pipe holds
		_, _ = write.Write(x.spec)
		_ = write.Close()
	}()
	return nil
}

// kill ends all processes of this exec: what it has started, and the OCI runtime that waits for it.
func (x *execution) kill() {
	if err := cgroup.Write(x.cgroup, "cgroup.kill", "1"); err == nil && x.kind.ownGroup {
		return
	}
	// A kernel before 5.14 or an OCI runtime that puts the process elsewhere: one by one, until
	// none is left.
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
func (x *execution) processes() ([]int, error) { return cgroup.Processes(x.cgroup) }

// status translates how the OCI runtime has ended: with the status of the process, or with an error
// of its own.
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
	how := unix.WaitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus))
	code, signal, reason := crun.Outcome(how, x.path("log"))
	if reason == "" {
		return runtime.ExitStatus{Code: code, Signal: signal}, nil
	}
	if x.p.TTY && x.kind.consoleSocket && x.p.Stdout != nil { // else the OCI runtime has said it on the process's own files
		_, _ = x.p.Stdout.Write([]byte(reason + "\r\n"))
	}
	return runtime.ExitStatus{Code: code}, pod.Errorf(pod.Invalid, "%s", reason)
}
