package e2e

import (
	"flag"
	"os"
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

// envE2E switches the tests on.
const envE2E = "MAGIKPOD_E2E"

func TestMain(m *testing.M) {
	runHelper()
	// Most of a script's time is waiting. Where everything is slower it is not.
	if os.Getenv(host.EnvSlowness) == "" {
		if err := flag.Set("test.parallel", "4"); err != nil {
			panic(err) // the flag is package testing's
		}
	}
	host.Inside(m, envE2E, prepare)
}

// inside skips a test that does not run in the host.
func inside(t *testing.T) {
	t.Helper()
	host.IsInside(t, envE2E, "make e2e")
}
