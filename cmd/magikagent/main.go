// Command magikagent is the agent in a VM: PID 1, which runs the pod's containers and serves the
// host over vsock. It is started by the kernel, not by people.
package main

import (
	"os"

	"github.com/magikrun/magikpod/runtime/microvm/guest"
	"github.com/magikrun/magikpod/shim"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) == 1 && args[0] == shim.ReapCommand: // PID 1 as well, of the pod's PID namespace
		return shim.Reap()
	case len(args) > 1 && args[0] == guest.ScoreCommand:
		os.Stderr.WriteString("magikagent: " + guest.SetScore(args[1:]).Error() + "\n")
		return shim.ExitFailure
	case len(args) == 1 && args[0] == "version":
		os.Stdout.WriteString("magikagent " + version + "\n")
		return 0
	case os.Getpid() == 1: // the kernel passes on what it does not know of its command line
		guest.Init(version)
	}
	os.Stderr.WriteString("usage: magikagent is PID 1 of a VM; magikagent version\n")
	return shim.ExitUsage
}
