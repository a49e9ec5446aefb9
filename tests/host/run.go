package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Result is what a finished command has said. A process killed by signal N has Code 128+N, as in a
// shell.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command is something to run in a host.
type Command struct {
	Argv   []string
	Env    []string // KEY=VALUE, on top of systemd's own environment
	Dir    string   // "": the root
	Stdin  io.Reader
	Stdout io.Writer // nil: discarded
	Stderr io.Writer
	TTY    bool // give it a terminal; then Stdin and Stdout must be one
}

// Process is a running command.
type Process struct {
	h    *Host
	ctx  context.Context // of Start
	unit string
	cmd  *exec.Cmd
}

// commands numbers the units of the commands of this process.
var commands atomic.Uint64

// enter is a command in the host's namespaces but in none of its units: only for what asks PID 1
// something.
func (h *Host) enter(ctx context.Context, argv ...string) *exec.Cmd {
	args := append([]string{"--target", strconv.Itoa(h.leader), "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "TERM=" + cmp.Or(os.Getenv("TERM"), "dumb")}
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Run runs a command in a transient unit of the host and waits for it. A command that fails is no
// error: see Result.Code.
func (h *Host) Run(ctx context.Context, argv ...string) (Result, error) {
	var stdout, stderr bytes.Buffer
	p, err := h.Start(ctx, Command{Argv: argv, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return Result{}, err
	}
	code, err := p.Wait()
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: code}, err
}

// Output is Run for commands that must succeed: it returns the standard output, or an error that
// carries what the command said.
func (h *Host) Output(ctx context.Context, argv ...string) (string, error) {
	r, err := h.Run(ctx, argv...)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return r.Stdout, fmt.Errorf("%s in host %s: exit status %d: %s%s", strings.Join(argv, " "), h.name, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, nil
}

// Start starts a command in a transient unit of the host. When ctx ends, so does the unit. The
// caller must Wait.
func (h *Host) Start(ctx context.Context, c Command) (*Process, error) {
	if len(c.Argv) == 0 {
		return nil, errors.New("cannot start a command in a host: it is empty")
	}
	p := &Process{h: h, ctx: ctx, unit: fmt.Sprintf("magikhost-run-%d-%d.service", syscall.Getpid(), commands.Add(1))}
	args := []string{"systemd-run", "--quiet", "--wait", "--collect", "--service-type=exec", "--unit=" + p.unit, "--description=command of a test", "--pipe"}
	if c.TTY {
		args[len(args)-1] = "--pty"
	}
	for _, env := range c.Env {
		args = append(args, "--setenv="+env)
	}
	if c.Dir != "" {
		args = append(args, "--working-directory="+c.Dir)
	}
	// The shell distinguishes a death by signal from an exit: systemd-run reports both as 1.
	args = append(args, "--")
	for _, arg := range append([]string{"/bin/sh", "-c", `"$@"; exit $?`, "sh"}, c.Argv...) {
		// systemd expands environment variables in a command line (systemd.service(5), COMMAND LINES).
		args = append(args, strings.ReplaceAll(arg, "$", "$$"))
	}
	p.cmd = h.enter(ctx, args...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	p.cmd.Cancel = func() error {
		stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = h.enter(stop, "systemctl", "kill", "--signal=KILL", p.unit).Run() // it may have just ended
		return p.cmd.Process.Kill()
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %q in host %s: %w", c.Argv, h.name, err)
	}
	return p, nil
}

// Unit is the name of the unit in the host that the command runs in.
func (p *Process) Unit() string { return p.unit }

// Wait waits for the command and returns its exit status; an error when the context ended it.
func (p *Process) Wait() (int, error) {
	err := p.cmd.Wait()
	if err != nil && p.ctx.Err() != nil {
		return -1, fmt.Errorf("cannot finish a command in host %s: %w", p.h.name, context.Cause(p.ctx))
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return -1, fmt.Errorf("cannot run a command in host %s: %w", p.h.name, err)
	}
	return 0, nil
}

// Signal sends sig to the command's processes.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	out, err := p.h.enter(ctx, "systemctl", "kill", fmt.Sprintf("--signal=%d", int(sig)), p.unit).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot signal %s: %w: %s", p.unit, err, bytes.TrimSpace(out))
	}
	return nil
}

// Journal returns the lines of the host's journal since its boot that match, in the format of
// `journalctl -o short-precise`; args are further arguments of journalctl.
func (h *Host) Journal(ctx context.Context, args ...string) (string, error) {
	out, err := h.enter(ctx, append([]string{"journalctl", "--boot", "--no-pager", "--quiet", "--output=short-precise"}, args...)...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && len(exit.Stderr) == 0 && len(out) == 0 {
		return "", nil // journalctl exits with 1 when nothing matches
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the journal of host %s: %w", h.name, err)
	}
	return string(out), nil
}
