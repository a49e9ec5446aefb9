// Command magikvmm supervises the VM of a pod: it starts the VMM and its helpers in their jails,
// and ends with them. It is started by systemd, not by people.
package main

import (
	"os"

	"github.com/magikrun/magikpod/runtime/microvm/supervise"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) == 2 && args[0] == "--config":
		return supervise.Run(args[1])
	case len(args) == 1 && args[0] == "version":
		os.Stdout.WriteString("magikvmm " + version + "\n")
		return 0
	}
	os.Stderr.WriteString("usage: magikvmm --config FILE | version\n")
	return supervise.ExitUsage
}
