//go:build linux

// Command magikwasm is the first and only process of a container of the class pod-wasm: run jails
// itself and runs a WebAssembly module, compile puts one into the cache. It is started by magikshim
// launch and by magikpodd, not by people: for them there is `magikpodctl wasm run`.
package main

import (
	"os"

	"github.com/magikrun/magikpod/runtime/wasm/jail"
	"github.com/magikrun/magikpod/shim"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) == 3 && args[0] == "run" && args[1] == "--config":
		return jail.Run(args[2])
	case len(args) == 4 && args[0] == "compile" && args[1] == "--cache":
		return jail.Compile(args[2], args[3])
	case len(args) == 1 && args[0] == "version":
		os.Stdout.WriteString("magikwasm " + version + "\n")
		return 0
	}
	os.Stderr.WriteString("usage: magikwasm run --config FILE | compile --cache DIRECTORY FILE | version\n")
	return shim.ExitUsage
}
