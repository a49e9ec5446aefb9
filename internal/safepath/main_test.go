package safepath

import (
	"testing"

	"github.com/magikrun/magikpod/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }
