package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/vm/wire"
)

// Command is something to run in a VM. It runs in the unit guest.service.
type Command struct {
	Argv   []string
	Env    []string // KEY=VALUE, on top of PATH, HOME, LANG and MAGIKHOST_SLOWNESS
	Dir    string   // "": the root
	Stdin  io.Reader
	Stdout io.Writer // nil: discarded
	Stderr io.Writer
	TTY    *wire.Size // give it a terminal of this size
}

// Process is a running command.
type Process struct {
	m      *VM
	ctx    context.Context // of Start
	id     uint32
	c      Command
	once   sync.Once
	done   chan struct{}
	status wire.Status
}

// Start starts a command. When ctx ends, the command and its children are killed. The caller must
// Wait. Output is written as it comes.
func (m *VM) Start(ctx context.Context, c Command) (*Process, error) {
	p := &Process{m: m, ctx: ctx, c: c, done: make(chan struct{})}
	if !m.register(p) {
		return nil, errors.New("cannot start a command: the VM has ended")
	}
	data, err := json.Marshal(wire.Command{Argv: c.Argv, Env: append([]string{slownessEnv()}, c.Env...), Dir: c.Dir, TTY: c.TTY})
	if err == nil {
		err = m.conn.Send(wire.Frame{ID: p.id, Kind: wire.Start, Data: data})
	}
	if err != nil {
		m.forget(p)
		return nil, fmt.Errorf("cannot start %q in a VM: %w", c.Argv, err)
	}
	go p.feed()
	return p, nil
}

// feed sends standard input. What blocks in a read of it is left alone.
func (p *Process) feed() {
	if p.c.Stdin != nil {
		p.m.conn.Stream(p.id, wire.Stdin, p.c.Stdin)
	}
	_ = p.m.conn.Send(wire.Frame{ID: p.id, Kind: wire.Stdin}) // the VM may have ended
}

// Resize gives a command the size of its terminal.
func (p *Process) Resize(size wire.Size) {
	data, _ := json.Marshal(size)                                          // never fails
	_ = p.m.conn.Send(wire.Frame{ID: p.id, Kind: wire.Resize, Data: data}) // cosmetics
}

func (p *Process) handle(f wire.Frame) {
	switch f.Kind {
	case wire.Stdout:
		_, _ = discard(p.c.Stdout).Write(f.Data) // a reader that has gone away is no error of the command's
	case wire.Stderr:
		_, _ = discard(p.c.Stderr).Write(f.Data)
	case wire.Exit:
		var status wire.Status
		if err := json.Unmarshal(f.Data, &status); err != nil {
			status = wire.Status{Code: -1, Error: err.Error()}
		}
		p.m.forget(p)
		p.end(status)
	}
}

func (p *Process) end(status wire.Status) {
	p.once.Do(func() {
		p.status = status
		close(p.done)
	})
}

// Wait waits for the command and returns its exit status, 128+N when signal N has killed it; an
// error when it could not be started or the VM or the context has ended.
func (p *Process) Wait() (int, error) {
	select {
	case <-p.done:
	case <-p.ctx.Done():
		_ = p.m.conn.Send(wire.Frame{ID: p.id, Kind: wire.Kill}) // the VM may have ended
		return -1, fmt.Errorf("cannot finish %q in a VM: %w", p.c.Argv, context.Cause(p.ctx))
	}
	if p.status.Error != "" {
		return p.status.Code, fmt.Errorf("cannot run %q in a VM: %s", p.c.Argv, p.status.Error)
	}
	return p.status.Code, nil
}

// Run runs a command and waits for it. A command that fails is no error: see Result.Code.
func (m *VM) Run(ctx context.Context, argv ...string) (host.Result, error) {
	var stdout, stderr bytes.Buffer
	p, err := m.Start(ctx, Command{Argv: argv, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return host.Result{}, err
	}
	code, err := p.Wait()
	if err != nil {
		return host.Result{Code: code}, err
	}
	return host.Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: code}, nil
}

// Output is Run for commands that must succeed: it returns the standard output, or an error that
// carries what the command said.
func (m *VM) Output(ctx context.Context, argv ...string) (string, error) {
	r, err := m.Run(ctx, argv...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s in a VM: exit status %d: %s%s", strings.Join(argv, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, err
}

// WriteFile writes a file in the VM; missing directories are made.
func (m *VM) WriteFile(ctx context.Context, path, content string) error {
	return m.pipe(ctx, strings.NewReader(content), nil, "sh", "-c", `mkdir -p "${1%/*}" && exec cat >"$1"`, "sh", path)
}

// Pull copies the files of a directory of the VM into a directory of the host, which is made.
func (m *VM) Pull(ctx context.Context, path, dir string) error {
	end, err := m.Follow(ctx, path, dir)
	if err != nil {
		return err
	}
	return end()
}

// Follow is Pull that goes on: files come when they appear or change, at most a second later. end
// brings the last ones.
func (m *VM) Follow(ctx context.Context, path, dir string) (end func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	outR, outW := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		cmd := tarInto(ctx, dir)
		cmd.Stdin = outR
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("cannot unpack %s of a VM: %w: %s", path, err, out)
		}
		_, _ = io.Copy(io.Discard, outR) // so that the VM's output does not stand still
		unpacked <- err
	}()
	inR, inW := io.Pipe()
	exported := make(chan error, 1)
	go func() {
		err := m.pipe(ctx, inR, outW, guestPath, "export", path)
		_, _ = outW.Close(), inR.Close() // never fail
		exported <- err
	}()
	return func() error {
		_ = inW.Close() // never fails
		return errors.Join(<-exported, <-unpacked)
	}, nil
}

func (m *VM) pipe(ctx context.Context, stdin io.Reader, stdout io.Writer, argv ...string) error {
	var stderr bytes.Buffer
	p, err := m.Start(ctx, Command{Argv: argv, Stdin: stdin, Stdout: stdout, Stderr: &stderr})
	if err != nil {
		return err
	}
	code, err := p.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("%s in a VM: exit status %d: %s", strings.Join(argv, " "), code, stderr.String())
	}
	return err
}
