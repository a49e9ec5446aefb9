package shim

import (
	"os"
	"testing"

	"github.com/magikrun/magikpod/internal/guesttest"
)

// The test binary is magikshim proxy when it is started with this variable.
const asProxy = "MAGIKPROXY_TEST"

func TestMain(m *testing.M) {
	if path := os.Getenv(asProxy); path != "" {
		os.Exit(Run(path))
	}
	os.Exit(guesttest.Main(m))
}
