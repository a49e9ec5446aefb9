// Command magikpodctl is the command line of magikpod: it talks to magikpodd over D-Bus.
package main

import (
	"os"

	"github.com/magikrun/magikpod/cli"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(cli.Main(version, nil)) }
