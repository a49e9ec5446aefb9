package guest_test

import (
	"os"
	"testing"

	"github.com/magikrun/magikpod/internal/guesttest"
)

func TestMain(m *testing.M) { os.Exit(guesttest.Main(m)) }
