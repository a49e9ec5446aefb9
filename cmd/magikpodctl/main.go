// The runtime looks for no limit of CPUs, and never again:
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command magikpodctl is the command line of magikpod: it talks to magikpodd over D-Bus.
package main

import (
	"os"
	"runtime"

	"github.com/magikrun/magikpod/cli"
)

// version is set by the linker.
var version = "devel"

func main() {
	runtime.GOMAXPROCS(1) // it waits; threads that look for work cost more than they do
	os.Exit(cli.Main(version, nil))
}
