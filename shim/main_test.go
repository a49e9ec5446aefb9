package shim

import (
	"os"
	"runtime"
	"testing"
)

// The test binary is magikshim when it is started with this variable: pause and launch want a
// process of their own.
const asAgent = "MAGIKAGENT_TEST"

// The main thread is kept for the main goroutine, also in the tests: a namespace that a test
// unshares on it would become the process's.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == ReapCommand {
		os.Exit(Reap())
	}
	if len(os.Args) > 1 && os.Args[1] == FreezeCommand {
		os.Exit(Freeze(os.Args[2], os.Args[3:]))
	}
	switch os.Getenv(asAgent) {
	case "pause":
		os.Exit(Pause(os.Args[1]))
	case "launch":
		os.Exit(Launch(os.Args[1]))
	}
	os.Exit(m.Run())
}
