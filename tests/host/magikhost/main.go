// Command magikhost boots disposable systemd hosts for people and scripts: see package host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/term"

	"github.com/magikrun/magikpod/tests/host"
)

const usage = `usage: magikhost COMMAND [FLAGS] [ARGS]

  run [FLAGS] -- COMMAND...  boot a host, run COMMAND in it, throw the host away; the exit status is COMMAND's
  shell [FLAGS]              boot a host and open a shell in it, or run the commands on standard input; the exit status is the shell's
  boot [FLAGS]               boot a host, print its PID, keep it until interrupted
  root trixie                build the Debian 13 root unless it is in the cache; print its directory
  gc                         remove what is left of hosts whose owners have died

FLAGS of run, shell and boot:
`

// options are the flags of run, shell and boot.
type options struct {
	host.Options
	journal bool
	here    bool
	env     list
	dir     string
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "magikhost:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	var opts options
	flags := flag.NewFlagSet("magikhost", flag.ContinueOnError)
	flags.StringVar(&opts.Root, "root", os.Getenv(host.EnvRoot), "root file system: a directory, or trixie; empty for the build host's own")
	flags.StringVar(&opts.Install, "install", os.Getenv(host.EnvInstall), "directory filled by make install DESTDIR=")
	flags.Var((*list)(&opts.Binds), "bind", "mount SOURCE[:DESTINATION] in the host, writable (may be repeated)")
	flags.Var(&opts.env, "env", "KEY=VALUE for the command (may be repeated)")
	flags.StringVar(&opts.dir, "dir", "", "working directory of the command in the host")
	flags.BoolVar(&opts.here, "here", false, "run: mount the source tree and COMMAND's directory at their places, keep working directory and environment;\nfor go test -exec 'magikhost run --here --'")
	flags.BoolVar(&opts.journal, "journal", false, "print the host's journal to standard error in the end")
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage); flags.PrintDefaults() }
	if len(args) == 0 {
		flags.Usage()
		return 2, nil
	}
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, nil
		}
		return 2, nil // the flag package has said what is wrong
	}
	switch verb, rest := args[0], flags.Args(); {
	case verb == "run" && len(rest) > 0:
		if opts.here {
			if err := opts.bindHere(rest[0]); err != nil {
				return 1, err
			}
		}
		return inHost(ctx, opts, func(h *host.Host) (int, error) { return command(ctx, h, opts, rest, false) })
	case verb == "shell" && len(rest) == 0:
		return inHost(ctx, opts, func(h *host.Host) (int, error) {
			if term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
				return command(ctx, h, opts, []string{"/bin/bash", "-i"}, true)
			}
			return command(ctx, h, opts, []string{"/bin/bash"}, false) // it reads commands until their end
		})
	case verb == "boot" && len(rest) == 0:
		return inHost(ctx, opts, func(h *host.Host) (int, error) { return keep(ctx, h) })
	case verb == "root" && len(rest) == 1 && rest[0] == "trixie":
		dir, err := host.BuildTrixie(ctx)
		if err != nil {
			return 1, err
		}
		fmt.Println(dir)
		return 0, nil
	case verb == "gc" && len(rest) == 0:
		return status(host.Sweep())
	case verb == "help" || verb == "-h" || verb == "--help":
		flags.Usage()
		return 0, nil
	}
	flags.Usage()
	return 2, nil
}

// bindHere makes the command find in the host what it would find here.
func (o *options) bindHere(program string) error {
	tree, err := host.SourceTree()
	if err != nil {
		return err
	}
	o.Binds = append(o.Binds, tree)
	if dir := filepath.Dir(program); filepath.IsAbs(program) && !strings.HasPrefix(dir, tree+"/") {
		o.Binds = append(o.Binds, dir)
	}
	if o.dir == "" {
		if o.dir, err = os.Getwd(); err != nil {
			return err
		}
	}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		// What systemd has set for this process alone; and systemd refuses control characters in
		// the environment.
		return slices.Contains([]string{"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM", "INVOCATION_ID", "WATCHDOG_USEC"}, name) ||
			strings.ContainsFunc(kv, unicode.IsControl)
	})
	o.env = append(env, o.env...)
	return nil
}

// inHost calls do with a host that it boots and throws away.
func inHost(ctx context.Context, opts options, do func(*host.Host) (int, error)) (int, error) {
	var err error
	if opts.Root, err = host.FindRoot(opts.Root); err != nil {
		return 1, err
	}
	h, err := host.Boot(ctx, opts.Options)
	if err != nil {
		return 1, err
	}
	code, err := do(h)
	if opts.journal {
		text, jerr := h.Journal(context.WithoutCancel(ctx))
		fmt.Fprint(os.Stderr, text)
		err = errors.Join(err, jerr)
	}
	if err = errors.Join(err, h.Close()); err != nil && code == 0 {
		code = 1
	}
	return code, err
}

func command(ctx context.Context, h *host.Host, opts options, argv []string, tty bool) (int, error) {
	p, err := h.Start(ctx, host.Command{
		Argv: argv, Env: opts.env, Dir: opts.dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, TTY: tty,
	})
	if err != nil {
		return 1, err
	}
	return p.Wait()
}

func keep(ctx context.Context, h *host.Host) (int, error) {
	fmt.Println(h.PID())
	fmt.Fprintf(os.Stderr, "%s runs; enter it with: nsenter -t %d -m -p -n -i -u -C\n", h.Name(), h.PID())
	select {
	case <-ctx.Done():
	case <-h.Done():
	}
	return 0, nil
}

func status(err error) (int, error) {
	if err != nil {
		return 1, err
	}
	return 0, nil
}
