package vm

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/magikrun/magikpod/tests/vm/wire"
)

// Shell opens a shell with this process's terminal and returns its exit status. Where standard
// input or output is none, the shell reads commands from standard input until their end.
func (m *VM) Shell(ctx context.Context, env []string) (int, error) {
	in, out := int(os.Stdin.Fd()), int(os.Stdout.Fd())
	c := Command{Argv: []string{"/bin/bash"}, Env: env, Dir: "/root", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if !term.IsTerminal(in) || !term.IsTerminal(out) {
		p, err := m.Start(ctx, c)
		if err != nil {
			return 1, err
		}
		return p.Wait()
	}
	size := func() wire.Size {
		cols, rows, err := term.GetSize(out)
		if err != nil {
			cols, rows = 80, 24
		}
		return wire.Size{Rows: uint16(rows), Cols: uint16(cols)}
	}
	old, err := term.MakeRaw(in)
	if err != nil {
		return 1, err
	}
	defer func() { _ = term.Restore(in, old) }()
	c.Argv, c.Env, c.TTY = []string{"/bin/bash", "-i"}, append([]string{"TERM=" + os.Getenv("TERM")}, env...), new(size())
	p, err := m.Start(ctx, c)
	if err != nil {
		return 1, err
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	go func() {
		for range resized {
			p.Resize(size())
		}
	}()
	return p.Wait()
}
