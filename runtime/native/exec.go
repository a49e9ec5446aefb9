package native

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	m      *Manager
	s      *sandbox
	record attemptRecord
	kind   *ociRuntime
	p      runtime.Process
	dir    string // its files, below the bundle
	cgroup string // its own, a child of the container's
	score  int    // oom_score_adj
}

// Exec implements [runtime.PodManager]. When Timeout or ctx ends the process, all processes that it has started end with it. Invalid: the OCI runtime
// cannot start it (no such command, user or directory).
func (m *Manager) Exec(ctx context.Context, ref pod.Ref, name string, p runtime.Process) (runtime.ExitStatus, error) {
	fail := func(err error) error {
		return pod.Errorf(pod.KindOf(err), "cannot run a process in container %q of pod %s: %w", name, ref, err)
	}
	s, record, err := m.running(ref, name)
	if err != nil {
		return runtime.ExitStatus{}, fail(err)
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return runtime.ExitStatus{}, fail(pod.Errorf(pod.Invalid, "no command specified"))
	}
	for _, text := range slices.Concat(p.Args, p.Env, []string{p.WorkingDir, p.User}) {
		if strings.ContainsRune(text, 0) {
			return runtime.ExitStatus{}, fail(pod.Errorf(pod.Invalid, "%q has a NUL byte in it", text))
		}
	}
	if unit := m.frozenUnit(s, name); unit != "" {
		return runtime.ExitStatus{}, fail(pod.Errorf(pod.Conflict, "it is frozen (try: systemctl thaw %s, or the slice that was frozen)", unit))
	}
	if m.config.Sandboxes != nil {
		status, err := m.config.Sandboxes.Exec(ctx, m.machine(s), name, p)
		if err != nil {
			err = fail(err)
		}
		return status, err
	}
	if m.config.Launcher != nil || m.config.Chooser != nil && record.Runtime == m.config.Chooser.Class().Name {
		return runtime.ExitStatus{}, fail(pod.Errorf(pod.Unsupported, "a container of the class %s has no second process", record.Runtime))
	}
	if m.oci == nil || m.oci.name != record.Runtime {
		return runtime.ExitStatus{}, fail(pod.Errorf(pod.Unavailable, "it was started by %s, which is not in use any more", record.Runtime))
	}
	x := &execution{m: m, s: s, record: record, kind: m.oci, p: p}
	status, err := x.run(ctx)
	if err != nil {
		err = fail(err)
	}
	return status, err
}

// run makes what the process needs, runs it, and removes everything again.
func (x *execution) run(ctx context.Context) (status runtime.ExitStatus, err error) {
	state, _ := x.m.units.State(x.s.unit(x.record.Container))
	bundle := filepath.Join(x.s.dir, containersName, x.record.Container)
	id := "exec-" + newID()[:16]
	x.dir = filepath.Join(bundle, id)
	x.cgroup = filepath.Join(cgroup.Root(), state.ControlGroup, id)
	if x.kind.subCgroup != "" {
		x.cgroup = filepath.Join(cgroup.Root(), state.ControlGroup, containerCgroup, id)
	}
	process, err := x.process(bundle, state.MainPID)
	if err != nil {
		return status, err
	}
	if err := os.Mkdir(x.dir, 0o700); err != nil {
		return status, pod.WithKind(pod.Internal, err)
	}
	defer os.RemoveAll(x.dir)
	if err := saveRecord(x.path("process.json"), process); err != nil {
		return status, pod.WithKind(pod.Internal, err)
	}
	if err := os.Mkdir(x.cgroup, 0o755); err != nil {
		return status, pod.Errorf(pod.Internal, "cannot make cgroup: %w", err)
	}
	defer x.m.removeCgroup(x.cgroup)
	if x.p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, x.p.Timeout, errTimeout(x.p.Timeout))
		defer cancel()
	}
	return x.supervise(ctx)
}

// removeTime is how long killed processes may take to be gone.
const removeTime = 4 * time.Second

// removeCgroup removes the cgroup of a process as soon as what was killed in it is gone. Processes that it has left behind on purpose stay in it until
// the container ends.
func (m *Manager) removeCgroup(path string) {
	if err := cgroup.Remove(path); errors.Is(err, unix.EBUSY) {
		m.spawn(func() { _ = cgroup.RemoveWithin(path, removeTime, m.ctx.Done()) })
	}
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
	argv := x.withScore(x.kind.execArgv(x.path("log"), x.path("process.json"), x.path(pidName), filepath.Base(x.cgroup), x.p.TTY, x.record.ID))
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
	letGo, err := x.m.holdStill(ctx, x.s, x.record.Container, x.cgroup)
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

// withScore makes argv run with the OOM score of the container: the process would have the daemon's (crun exec leaves the score alone), and the
// daemon wants to be spared. Only the process itself can set it before it is more than one.
func (x *execution) withScore(argv []string) []string {
	if x.score == crun.OwnOOMScore() {
		return argv
	}
	script := "echo " + strconv.Itoa(x.score) + ` > /proc/self/oom_score_adj; exec "$@"`
	return append([]string{"/bin/sh", "-c", script, "sh"}, argv...)
}

// kill ends all processes of this exec: what it has started, and the OCI runtime that waits for it.
func (x *execution) kill() {
	if err := cgroup.Write(x.cgroup, "cgroup.kill", "1"); err == nil && x.kind.ownGroup {
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
func (x *execution) processes() ([]int, error) { return cgroup.Processes(x.cgroup) }

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
