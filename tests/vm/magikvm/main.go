// Command magikvm boots test VMs for people and scripts: see package vm.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/vm"
)

const usage = `usage: magikvm COMMAND [FLAGS] [ARGS]

  run [FLAGS] -- COMMAND...  boot a VM, run COMMAND in it, throw the VM away; the exit status is COMMAND's
  shell [FLAGS]              boot a VM and open a shell in it, or run the commands on standard input; the exit status is the shell's
  image                      build the image unless it is in the cache

FLAGS of run and shell:
`

type options struct {
	vm.Options
	journal, out, dir string
	here              bool
	env, copies       list
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
		fmt.Fprintln(os.Stderr, "magikvm:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	var opts options
	flags := flag.NewFlagSet("magikvm", flag.ContinueOnError)
	flags.StringVar(&opts.Install, "install", os.Getenv(host.EnvInstall), "directory filled by make install DESTDIR=")
	flags.BoolVar(&opts.Enable, "enable", false, "start the daemon at boot")
	flags.StringVar(&opts.Disk, "disk", "", "raw image with ext4 that holds /var/lib/magikpod and /etc/magikpod; made when it is missing")
	flags.DurationVar(&opts.Limit, "limit", 30*time.Minute, "how long the VM may run")
	flags.Var(&opts.env, "env", "KEY=VALUE for the command (may be repeated)")
	flags.StringVar(&opts.dir, "dir", "", "working directory of the command")
	flags.BoolVar(&opts.here, "here", false, "run: copy the source tree and COMMAND to their places, keep working directory and the environment of tests;\nfor go test -exec 'magikvm run --here --'")
	flags.Var(&opts.copies, "copy", "run: a file to copy to its place, too (may be repeated)")
	flags.StringVar(&opts.journal, "journal", "", "write the journal to this file, as it comes; - is standard error")
	flags.StringVar(&opts.out, "out", "", "run: $MAGIKVM_OUT is a directory in the VM whose files come to this directory, as they are written")
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
		return opts.run(ctx, rest)
	case verb == "shell" && len(rest) == 0:
		return opts.inVM(ctx, func(m *vm.VM) (int, error) { return m.Shell(ctx, opts.env) })
	case verb == "image" && len(rest) == 0:
		_, err := vm.BuildImage(ctx)
		return 0, err
	case verb == "help" || verb == "-h" || verb == "--help":
		flags.Usage()
		return 0, nil
	}
	flags.Usage()
	return 2, nil
}

// guestOut is $MAGIKVM_OUT.
const guestOut = "/run/magikvm-out"

func (o *options) run(ctx context.Context, argv []string) (int, error) {
	for _, name := range o.copies {
		path, err := filepath.Abs(name)
		if err != nil {
			return 1, err
		}
		if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() {
			return 2, fmt.Errorf("cannot copy %s: it is no file", name)
		}
		o.Files = append(o.Files, vm.File{Local: path, Guest: path})
	}
	if o.here {
		if err := o.copyHere(ctx, argv[0]); err != nil {
			return 1, err
		}
	}
	return o.inVM(ctx, func(m *vm.VM) (int, error) {
		env, end := o.env, func() error { return nil }
		if o.out != "" {
			if _, err := m.Output(ctx, "mkdir", "-p", guestOut); err != nil {
				return 1, err
			}
			var err error
			if end, err = m.Follow(ctx, guestOut, o.out); err != nil {
				return 1, err
			}
			env = append(env, "MAGIKVM_OUT="+guestOut)
		}
		p, err := m.Start(ctx, vm.Command{Argv: argv, Env: env, Dir: o.dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
		if err != nil {
			return 1, err
		}
		code, err := p.Wait()
		err = errors.Join(err, end())
		if err != nil {
			err = fmt.Errorf("%w\nthe VM's console:\n%s", err, m.Console())
		}
		return code, err
	})
}

// copyHere makes the command find in the VM what it would find here: the files that git knows, and
// the program.
func (o *options) copyHere(ctx context.Context, program string) error {
	tree, err := host.SourceTree()
	if err != nil {
		return err
	}
	files, err := sources(ctx, tree)
	if err != nil {
		return err
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	o.Files = append(append(o.Files, files...), vm.File{Local: program, Guest: program})
	if o.dir == "" {
		if o.dir, err = os.Getwd(); err != nil {
			return err
		}
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "MAGIKPOD_") || strings.HasPrefix(kv, "MAGIKVM_") {
			o.env = append(o.env, kv)
		}
	}
	return nil
}

// inVM calls do with a VM that it boots and throws away.
func (o *options) inVM(ctx context.Context, do func(*vm.VM) (int, error)) (int, error) {
	if o.Disk != "" {
		image, err := vm.BuildImage(ctx)
		if err != nil {
			return 1, err
		}
		if _, err := os.Stat(o.Disk); errors.Is(err, os.ErrNotExist) {
			if err := image.MakeDisk(ctx, o.Disk); err != nil {
				return 1, err
			}
		}
	}
	began := time.Now()
	m, err := vm.Boot(ctx, o.Options)
	if err != nil {
		return 1, err
	}
	defer m.Close()
	fmt.Fprintf(os.Stderr, "magikvm: booted in %.1f s\n", time.Since(began).Seconds())
	end, err := o.followJournal(ctx, m)
	if err != nil {
		return 1, err
	}
	code, err := do(m)
	return code, errors.Join(err, end())
}
