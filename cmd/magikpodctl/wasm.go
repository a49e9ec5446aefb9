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

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
)

func wasmCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "wasm", Short: "Try WebAssembly modules", Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("wasm what? (run)") },
	}
	cmd.AddCommand(wasmRun(a))
	return cmd
}

// wasmFlags are the flags of wasm run.
type wasmFlags struct {
	env, dirs, listen []string
	memory, entry     string
	engine            string
}

func wasmRun(a *app) *cobra.Command {
	var flags wasmFlags
	cmd := &cobra.Command{
		Use: "run [FLAGS] FILE [ARGUMENT...]", Short: "Run a WebAssembly module (WASI preview 1) right here; no daemon is needed",
		Long: `Run a WebAssembly module (WASI preview 1) right here; no daemon is needed. Its exit status is returned: 134 when it trapped.

The module gets the arguments, the variables of --env, standard input, output and error, and the directories of --dir as its descriptors from 3 on, followed by the sockets of --listen. Nothing else of this host, unless a directory is writable (:rw): a module can make a symbolic link in it and follow that to every file that the user may use. In a pod of the class pod-wasm a module is jailed and cannot.

Machine code is kept in $XDG_CACHE_HOME/magikpod/wasm, or ~/.cache/magikpod/wasm. Where that cannot be written to, or is another user's, a module is compiled each time.

The engine wasmtime, where that is installed, runs components (WASI 0.2), too.`,
		Example: `  magikpodctl wasm run hello.wasm
  magikpodctl wasm run --env LEVEL=debug --dir ./data:/data tool.wasm --verbose /data/in.txt`,
		Args: someArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, options, err := flags.config()
			if err != nil {
				return err
			}
			options.Interruptible = true
			module, err := readModule(args[0])
			if err != nil {
				return err
			}
			runner, err := flags.runner(cmd.Context())
			if err != nil {
				return err
			}
			program, err := runner.Load(cmd.Context(), module, options)
			if err != nil {
				return pod.Errorf(pod.KindOf(err), "cannot run %s: %w", args[0], err)
			}
			config.Args = append([]string{filepath.Base(args[0])}, args[1:]...)
			config.Stdin, config.Stdout, config.Stderr = os.Stdin, a.stdout, os.Stderr
			code, err := program.Run(cmd.Context(), config)
			if err != nil {
				err = pod.Errorf(pod.KindOf(err), "cannot run %s: %w", args[0], err)
				if code != engine.TrapCode {
					return err // a guest that was left behind may still be in the program
				}
				a.complain(err)
			}
			_ = program.Close()
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows FILE is the module's
	f.StringArrayVarP(&flags.env, "env", "e", nil, "NAME=VALUE, or NAME for the value that it has here")
	f.StringArrayVar(&flags.dirs, "dir", nil, "DIRECTORY[:NAME][:rw]: a directory for the module, as NAME; read-only without :rw")
	f.StringArrayVar(&flags.listen, "listen", nil, "[HOST:]PORT: a listening TCP socket for the module; HOST is 127.0.0.1 when not given")
	f.StringVar(&flags.memory, "memory", "", "how far the module's memory may grow, such as 64Mi (default 4Gi)")
	f.StringVar(&flags.engine, "engine", "wazero", "wazero, which is built in, or wasmtime, when it is installed")
	f.StringVar(&flags.entry, "invoke", "", "the function to call instead of _start")
	return cmd
}

// runner is the engine that was asked for.
func (f *wasmFlags) runner(ctx context.Context) (engine.Engine, error) {
	switch f.engine {
	case "wazero":
		return engine.New(cacheDir()), nil
	case "wasmtime":
		return engine.NewWasmtime(ctx, "wasmtime")
	}
	return nil, usagef("--engine %q is neither wazero nor wasmtime", f.engine)
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
			return nil, pod.WithKind(fileKind(err), fmt.Errorf("cannot run the module: %w", err))
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

// config reads the flags.
func (f *wasmFlags) config() (engine.Config, engine.LoadOptions, error) {
	config, options := engine.Config{Entry: f.entry}, engine.LoadOptions{}
	for _, e := range f.env {
		if !strings.Contains(e, "=") {
			value, ok := os.LookupEnv(e)
			if !ok {
				continue
			}
			e += "=" + value
		}
		config.Env = append(config.Env, e)
	}
	for _, text := range f.dirs {
		rest, writable := strings.CutSuffix(text, ":rw")
		host, guest, named := strings.Cut(rest, ":")
		if !named {
			guest = host
		}
		if host == "" || guest == "" {
			return config, options, usagef("--dir %q is not DIRECTORY[:NAME][:rw]", text)
		}
		config.Dirs = append(config.Dirs, engine.Dir{Host: host, Guest: guest, Writable: writable})
	}
	for _, text := range f.listen {
		listener, err := parseListen(text)
		if err != nil {
			return config, options, err
		}
		config.Listeners = append(config.Listeners, listener)
	}
	if f.memory != "" {
		quantity, err := resource.ParseQuantity(f.memory)
		if err != nil || quantity.Sign() <= 0 {
			return config, options, usagef("--memory %q is no amount of memory", f.memory)
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
			return engine.Listener{}, usagef("--listen %q is not [HOST:]PORT", text)
		}
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return engine.Listener{}, usagef("--listen %q: %q is no port", text, port)
	}
	return engine.Listener{Host: host, Port: int(number)}, nil
}
