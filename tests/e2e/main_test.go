package e2e

import (
	"flag"
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

// envE2E switches the tests on.
const envE2E = "MAGIKPOD_E2E"

func TestMain(m *testing.M) {
	runHelper()
	host.Inside(m, envE2E, prepare)
}

// inside skips a test that does not run in the host.
func inside(t *testing.T) {
	t.Helper()
	host.IsInside(t, envE2E, "make e2e")
	// Most of a script's time is waiting, and there are two cores.
	if err := flag.Set("test.parallel", "6"); err != nil {
		t.Fatal(err)
	}
}
