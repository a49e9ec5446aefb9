// Command build builds the WebAssembly modules that tests run into a directory: `make guests`.
package main

import (
	"fmt"
	"os"

	"github.com/magikrun/magikpod/tests/testwasm"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: build DIRECTORY")
		os.Exit(2)
	}
	if err := testwasm.Build(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
