package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
)

func execCommand(a *app) *cobra.Command {
	var container, user, dir string
	var env []string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use: "exec [-i] [-t] POD -- COMMAND [ARGUMENT...]", Short: "Run a command in a container; its exit status is returned",
		Long: "Run a command in a container; its exit status is returned, 127 when there is no such command, 126 when it cannot be executed.",
		Example: `  magikpodctl exec web -- cat /etc/hosts
  magikpodctl exec -it -c server web -- sh
  magikpodctl exec -i web -- sh -c "cat > /tmp/file" < file`,
		Args: usageArgs(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tty && !isTerminal(os.Stdin) {
				return Usagef("-t needs a terminal, and standard input is none")
			}
			words := 1
			if cmd.ArgsLenAtDash() == 2 && isType(args[0]) {
				words = 2 // pod POD -- COMMAND
			}
			c, path, err := a.podOf(cmd.Context(), args[:words])
			if err != nil {
				return err
			}
			p := client.Process{Args: args[words:], Env: env, WorkingDir: dir, User: user, TTY: tty, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
			if !stdin {
				p.Stdin = nil
			}
			signal.Ignore(syscall.SIGPIPE) // that nobody reads our output is the command's business
			ctx := cmd.Context()
			var size podapi.WinSize
			if tty {
				var restore func()
				// In raw mode ^C is a byte for the command, and no signal for us.
				if size, p.Resize, restore, err = rawTerminal(); err != nil {
					return err
				}
				defer restore()
				ctx = context.WithoutCancel(ctx)
			}
			code, err := c.Exec(ctx, path, container, p, size)
			if err != nil && code != podapi.ExitNotExecutable && code != podapi.ExitNotFound { // then the OCI runtime has said why
				return err
			}
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(true)
	f.BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&container, "container", "c", "", "the container; the first one when not given")
	f.StringVarP(&user, "user", "u", "", "USER[:GROUP] instead of the container's")
	f.StringVarP(&dir, "workdir", "w", "", "the working directory instead of the container's")
	f.StringArrayVarP(&env, "env", "e", nil, "KEY=VALUE, added to the container's environment")
	return cmd
}

// rawTerminal puts the terminal into raw mode until restore, and follows its size.
func rawTerminal() (size podapi.WinSize, resize <-chan podapi.WinSize, restore func(), err error) {
	fd := int(os.Stdin.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return size, nil, nil, errkind.Errorf(errkind.Internal, "cannot set up the terminal: %w", err)
	}
	get := func() podapi.WinSize {
		cols, rows, err := term.GetSize(fd)
		if err != nil || cols <= 0 || rows <= 0 {
			return podapi.WinSize{Rows: 24, Cols: 80}
		}
		return podapi.WinSize{Rows: uint16(rows), Cols: uint16(cols)}
	}
	signals, sizes, done := make(chan os.Signal, 1), make(chan podapi.WinSize), make(chan struct{})
	signal.Notify(signals, syscall.SIGWINCH)
	go func() {
		for {
			select {
			case <-signals:
				select {
				case sizes <- get():
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	return get(), sizes, func() {
		signal.Stop(signals)
		close(done)
		_ = term.Restore(fd, state)
	}, nil
}
