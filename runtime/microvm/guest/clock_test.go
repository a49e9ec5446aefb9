package guest

import (
	"testing"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// TestClock: a ping sets the clock of a configured VM, when it is wrong; the answer has its time.
func TestClock(t *testing.T) {
	for _, tc := range []struct {
		name       string
		configured bool
		off        time.Duration
		set        bool
	}{
		{"not configured", false, time.Hour, false},
		{"right", true, 0, false},
		{"almost right", true, wire.MaxClockError / 2, false},
		{"behind", true, 2 * time.Hour, true},
		{"ahead", true, -2 * time.Hour, true},
	} {
		var set time.Time
		s := &Server{configured: tc.configured, config: Config{SetClock: func(to time.Time) error { set = to; return nil }}}
		to := time.Now().Add(tc.off).Round(0)
		pong := s.ping(&wire.Ping{Time: to})
		if set.Equal(to) != tc.set || set.IsZero() == tc.set || time.Since(pong.Time).Abs() > time.Minute {
			t.Errorf("%s: set to %v, answered %v", tc.name, set, pong.Time)
		}
	}
}
