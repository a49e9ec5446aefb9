package host

import (
	"os"
	"strconv"
	"time"
)

// EnvSlowness is how many times longer than usual things may take where the tests run, as in an
// emulated VM (tests/vm); empty stands for 1.
const EnvSlowness = "MAGIKHOST_SLOWNESS"

// Patience is how long to wait for what takes at most d on a usual computer.
func Patience(d time.Duration) time.Duration {
	factor, err := strconv.Atoi(os.Getenv(EnvSlowness))
	if err != nil || factor < 1 {
		return d
	}
	return d * time.Duration(factor)
}
