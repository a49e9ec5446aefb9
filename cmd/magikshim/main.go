// Command magikshim is the small helper inside every pod: pause keeps the pod's namespaces and
// relays its output, launch mounts a container's file systems and has the OCI runtime start it,
// proxy stands for a container in a VM, freeze freezes containers for a moment, reap becomes PID 1
// of a pod. It is started by systemd and magikpodd, not by people.
package main

import (
	"os"
	"runtime"

	vmshim "github.com/magikrun/magikpod/runtime/microvm/shim"
	"github.com/magikrun/magikpod/shim"
)

// version is set by the linker.
var version = "devel"

// Namespaces belong to threads: all of the work is done on the first one.
func init() { runtime.LockOSThread() }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) == 3 && args[0] == "pause" && args[1] == "--config":
		return shim.Pause(args[2])
	case len(args) == 3 && args[0] == "launch" && args[1] == "--config":
		return shim.Launch(args[2])
	case len(args) == 3 && args[0] == "proxy" && args[1] == "--config":
		return vmshim.Run(args[2])
	case len(args) == 1 && args[0] == shim.ReapCommand:
		return shim.Reap()
	case len(args) > 2 && args[0] == shim.FreezeCommand:
		return shim.Freeze(args[1], args[2:])
	case len(args) == 1 && args[0] == "version":
		os.Stdout.WriteString("magikshim " + version + "\n")
		return 0
	}
	os.Stderr.WriteString("usage: magikshim pause --config FILE | launch --config FILE | proxy --config FILE | version\n")
	return shim.ExitUsage
}
