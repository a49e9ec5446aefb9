package engine

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/wasmform"
)

// wasmtimeEngine runs the command wasmtime, which runs components too. It keeps machine code in a
// cache of its own.
type wasmtimeEngine struct{ path string }

// NewWasmtime makes the engine of an installed wasmtime; path is that of the command, or its name
// in $PATH. Unsupported: there is none.
func NewWasmtime(ctx context.Context, path string) (Engine, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return nil, errkind.Errorf(errkind.Unsupported, "cannot use wasmtime: %w (see https://wasmtime.dev)", err)
	}
	out, err := exec.CommandContext(ctx, found, "--version").Output()
	if err != nil {
		return nil, errkind.Errorf(errkind.Unsupported, "cannot use %s: %w", found, err)
	}
	words := strings.Fields(string(out))
	if len(words) < 2 || !strings.HasPrefix(words[0], "wasmtime") {
		return nil, errkind.Errorf(errkind.Unsupported, "cannot use %s: it says that it is %.100q, and no wasmtime", found, strings.TrimSpace(string(out)))
	}
	return &wasmtimeEngine{path: found}, nil
}

// Compile implements [Engine]: wasmtime compiles when it runs something for the first time.
func (e *wasmtimeEngine) Compile(_ context.Context, module []byte) error { return runnable(module) }

// runnable refuses what is neither a module nor a component.
func runnable(module []byte) error {
	if wasmform.FormOf(module) == wasmform.Component {
		return nil
	}
	return wasmform.Check(module)
}

func (e *wasmtimeEngine) Load(_ context.Context, module []byte, o LoadOptions) (Program, error) {
	if err := runnable(module); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "magikpod-wasm-")
	if err != nil {
		return nil, errkind.WithKind(errkind.Internal, err)
	}
	p := &wasmtimeProgram{engine: e, dir: dir, file: filepath.Join(dir, "module.wasm"), options: o}
	if err := os.WriteFile(p.file, module, 0o600); err != nil {
		return nil, errkind.WithKind(errkind.Internal, errors.Join(err, p.Close()))
	}
	return p, nil
}

type wasmtimeProgram struct {
	engine    *wasmtimeEngine
	dir, file string
	options   LoadOptions
}

// Check implements [Program]: wasmtime finds out when it runs.
func (p *wasmtimeProgram) Check(string) error { return nil }

func (p *wasmtimeProgram) Close() error { return os.RemoveAll(p.dir) }

// Run implements [Program]. wasmtime says 134 for a trap, and so do we.
func (p *wasmtimeProgram) Run(ctx context.Context, config Config) (int, error) {
	argv, err := p.argv(config)
	if err != nil {
		return -1, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = config.Stdin, config.Stdout, config.Stderr
	cmd.WaitDelay = leaveAfter
	err = cmd.Run()
	exit, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return -1, errkind.Errorf(errkind.Unavailable, "the guest was stopped: %w", context.Cause(ctx))
	case ok && exit.Exited():
		return exit.ExitCode(), nil // wasmtime has said why
	}
	return -1, errkind.Errorf(errkind.Internal, "cannot run wasmtime: %w", err)
}

// argv is the command line for a guest.
func (p *wasmtimeProgram) argv(config Config) ([]string, error) {
	argv := []string{p.engine.path, "run"}
	if p.options.MemoryBytes > 0 {
		argv = append(argv, "-W", "max-memory-size="+strconv.FormatInt(p.options.MemoryBytes, 10))
	}
	if config.Entry != "" {
		argv = append(argv, "--invoke", config.Entry)
	}
	for _, d := range config.Dirs {
		if !d.Writable {
			return nil, errkind.Errorf(errkind.Unsupported, "wasmtime cannot make the directory %s read-only (:rw says that it may be written to)", d.Host)
		}
		if strings.Contains(d.Host, "::") || strings.Contains(d.Guest, "::") {
			return nil, errkind.Errorf(errkind.Unsupported, "wasmtime cannot use a directory with :: in its name: %s", d.Host)
		}
		argv = append(argv, "--dir", d.Host+"::"+d.Guest)
	}
	if len(config.Listeners) > 0 {
		argv = append(argv, "-S", "preview2=n") // pre-opened sockets are of preview 1
		for _, l := range config.Listeners {
			host := l.Host
			if host == "" {
				host = "[::]"
			}
			argv = append(argv, "-S", "tcplisten="+net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(l.Port)))
		}
	}
	env, err := lastOfEach(config.Env)
	if err != nil {
		return nil, err
	}
	for _, e := range env {
		argv = append(argv, "--env", e)
	}
	return append(argv, p.command(config)...), nil
}

// command is the end of a command line: the module and its arguments.
func (p *wasmtimeProgram) command(config Config) (argv []string) {
	if len(config.Args) == 0 {
		return []string{"--", p.file}
	}
	return append([]string{"--argv0", config.Args[0], "--", p.file}, config.Args[1:]...)
}
