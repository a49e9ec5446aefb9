// Command magikpodctl-full is magikpodctl with all that it can do by itself, which links Kubernetes'
// types and an engine of WebAssembly. It is run by magikpodctl for what needs these.
package main

import (
	"os"

	"github.com/magikrun/magikpod/cli"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run()) }

// run is main with an exit status, for tests.
func run() int {
	return cli.Main(version, &cli.Local{Check: check, PodNames: podNames, RunModule: runModule})
}
