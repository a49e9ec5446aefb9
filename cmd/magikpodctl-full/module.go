package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/cli"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
)

// runModule is [cli.Local.RunModule].
func runModule(ctx context.Context, flags cli.ModuleFlags, args []string) (int, error) {
	config, options, err := moduleConfig(flags)
	if err != nil {
		return 0, err
	}
	options.Interruptible = true
	module, err := readModule(args[0])
	if err != nil {
		return 0, err
	}
	runner, err := runner(ctx, flags.Engine)
	if err != nil {
		return 0, err
	}
	program, err := runner.Load(ctx, module, options)
	if err != nil {
		return 0, pod.Errorf(pod.KindOf(err), "cannot run %s: %w", args[0], err)
	}
	config.Args = append([]string{filepath.Base(args[0])}, args[1:]...)
	config.Stdin, config.Stdout, config.Stderr = os.Stdin, os.Stdout, os.Stderr
	code, err := program.Run(ctx, config)
	if err != nil {
		err = pod.Errorf(pod.KindOf(err), "cannot run %s: %w", args[0], err)
		if code != engine.TrapCode {
			return 0, err // a guest that was left behind may still be in the program
		}
	}
	_ = program.Close()
	return code, err
}

// runner is the engine that was asked for.
func runner(ctx context.Context, name string) (engine.Engine, error) {
	switch name {
	case "wazero":
		return engine.New(cacheDir()), nil
	case "wasmtime":
		return engine.NewWasmtime(ctx, "wasmtime")
	}
	return nil, cli.Usagef("--engine %q is neither wazero nor wasmtime", name)
}

// cacheDir is where machine code is kept; empty: there is no such place. What is somebody else's,
// as ~ is below sudo -E, is none: who can write to it runs what he likes.
func cacheDir() string {
	base, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	dir := filepath.Join(base, "magikpod", "wasm")
	for _, d := range []string{base, filepath.Dir(dir), dir} {
		var st unix.Stat_t
		if err := unix.Stat(d, &st); err == nil && int(st.Uid) != os.Geteuid() {
			return ""
		}
	}
	return dir
}

// readModule reads a file, "-" from standard input.
func readModule(name string) ([]byte, error) {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, pod.WithKind(cli.FileKind(err), fmt.Errorf("cannot run the module: %w", err))
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, engine.MaxModuleBytes+1))
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot run the module: %w", err)
	}
	return data, nil
}

// moduleConfig reads the flags.
func moduleConfig(f cli.ModuleFlags) (engine.Config, engine.LoadOptions, error) {
	config, options := engine.Config{Entry: f.Entry}, engine.LoadOptions{}
	for _, e := range f.Env {
		if !strings.Contains(e, "=") {
			value, ok := os.LookupEnv(e)
			if !ok {
				continue
			}
			e += "=" + value
		}
		config.Env = append(config.Env, e)
	}
	for _, text := range f.Dirs {
		rest, writable := strings.CutSuffix(text, ":rw")
		host, guest, named := strings.Cut(rest, ":")
		if !named {
			guest = host
		}
		if host == "" || guest == "" {
			return config, options, cli.Usagef("--dir %q is not DIRECTORY[:NAME][:rw]", text)
		}
		config.Dirs = append(config.Dirs, engine.Dir{Host: host, Guest: guest, Writable: writable})
	}
	for _, text := range f.Listen {
		listener, err := parseListen(text)
		if err != nil {
			return config, options, err
		}
		config.Listeners = append(config.Listeners, listener)
	}
	if f.Memory != "" {
		quantity, err := resource.ParseQuantity(f.Memory)
		if err != nil || quantity.Sign() <= 0 {
			return config, options, cli.Usagef("--memory %q is no amount of memory", f.Memory)
		}
		options.MemoryBytes = quantity.Value()
	}
	return config, options, nil
}

func parseListen(text string) (engine.Listener, error) {
	host, port := "127.0.0.1", text
	if strings.Contains(text, ":") {
		var err error
		if host, port, err = net.SplitHostPort(text); err != nil {
			return engine.Listener{}, cli.Usagef("--listen %q is not [HOST:]PORT", text)
		}
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return engine.Listener{}, cli.Usagef("--listen %q: %q is no port", text, port)
	}
	return engine.Listener{Host: host, Port: int(number)}, nil
}
