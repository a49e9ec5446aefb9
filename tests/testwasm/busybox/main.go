// Command busybox is what the tests' image has in place of busybox where containers are WebAssembly
// modules, built for wasip1: a shell and the few commands that the scripts of tests/e2e and
// runtime/runtimetest use. There are no processes, no signals and no pipes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

func main() {
	args := os.Args
	name := strings.TrimSuffix(path.Base(args[0]), ".wasm")
	if name == "busybox" && len(args) > 1 {
		args = args[1:]
		name = args[0]
	}
	if name == "sh" {
		os.Exit(shell(args[1:]))
	}
	command, ok := commands[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: not found\n", name)
		os.Exit(127)
	}
	t := &task{args: args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, path: func(name string) string { return name }}
	os.Exit(t.run(command))
}

// shell runs sh [-c SCRIPT | FILE] and returns its exit code.
func shell(args []string) int {
	script, name := io.Reader(os.Stdin), "sh"
	switch {
	case len(args) > 1 && args[0] == "-c":
		script, args = strings.NewReader(args[1]), args[2:]
	case len(args) > 0:
		f, err := os.Open(args[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, "sh:", err)
			return 127
		}
		defer f.Close()
		script, name, args = f, args[0], args[1:]
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(script, name)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sh:", err)
		return 2
	}
	dir := os.Getenv("PWD")
	if dir == "" {
		dir = "/"
	}
	runner, err := interp.New(
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr), interp.Env(expand.ListEnviron(os.Environ()...)), interp.Dir(dir),
		interp.Params(append([]string{"--"}, args...)...), interp.ExecHandlers(applets), interp.OpenHandler(open),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sh:", err)
		return 2
	}
	err = runner.Run(context.Background(), file)
	if status, ok := errors.AsType[interp.ExitStatus](err); ok {
		return int(status)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sh:", err)
		return 1
	}
	return 0
}

// applets runs the commands that are no builtins.
func applets(interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error {
		c := interp.HandlerCtx(ctx)
		command, ok := commands[path.Base(args[0])]
		if !ok {
			fmt.Fprintf(c.Stderr, "sh: %s: not found\n", args[0])
			return interp.ExitStatus(127)
		}
		t := &task{
			args: args[1:], in: c.Stdin, out: c.Stdout, err: c.Stderr, env: func(name string) string { return c.Env.Get(name).String() },
			path: func(name string) string { return absolute(c.Dir, name) },
		}
		if code := t.run(command); code != 0 {
			return interp.ExitStatus(code)
		}
		return nil
	}
}

func absolute(dir, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(dir, name)
}

// open opens what the shell redirects to. /dev/stdout is the shell's own: a module has no /dev.
func open(ctx context.Context, name string, flag int, perm os.FileMode) (io.ReadWriteCloser, error) {
	c := interp.HandlerCtx(ctx)
	switch name {
	case "/dev/stdout":
		return stream{c.Stdout}, nil
	case "/dev/stderr":
		return stream{c.Stderr}, nil
	case "/dev/null":
		return stream{io.Discard}, nil
	}
	f, err := os.OpenFile(absolute(c.Dir, name), flag, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// stream is a Writer that is not closed, and empty to read.
type stream struct{ io.Writer }

func (stream) Read([]byte) (int, error) { return 0, io.EOF }
func (stream) Close() error             { return nil }
