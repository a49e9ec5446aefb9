package cli

import (
	"github.com/spf13/cobra"
)

func wasmCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "wasm", Short: "Try WebAssembly modules", Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return Usagef("wasm what? (run)") },
	}
	cmd.AddCommand(wasmRun(a))
	return cmd
}

// ModuleFlags are the flags of wasm run.
type ModuleFlags struct {
	Env, Dirs, Listen     []string
	Memory, Entry, Engine string
}

func wasmRun(a *app) *cobra.Command {
	var flags ModuleFlags
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
			if a.local == nil {
				return handOver()
			}
			code, err := a.local.RunModule(cmd.Context(), flags, args)
			if err != nil {
				if code == 0 {
					return err
				}
				a.complain(err)
			}
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows FILE is the module's
	f.StringArrayVarP(&flags.Env, "env", "e", nil, "NAME=VALUE, or NAME for the value that it has here")
	f.StringArrayVar(&flags.Dirs, "dir", nil, "DIRECTORY[:NAME][:rw]: a directory for the module, as NAME; read-only without :rw")
	f.StringArrayVar(&flags.Listen, "listen", nil, "[HOST:]PORT: a listening TCP socket for the module; HOST is 127.0.0.1 when not given")
	f.StringVar(&flags.Memory, "memory", "", "how far the module's memory may grow, such as 64Mi (default 4Gi)")
	f.StringVar(&flags.Engine, "engine", "wazero", "wazero, which is built in, or wasmtime, when it is installed")
	f.StringVar(&flags.Entry, "invoke", "", "the function to call instead of _start")
	return cmd
}
