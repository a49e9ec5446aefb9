package supervise

import (
	"context"
	"fmt"
	"os"
	"time"
)

// gateInterval is the time between two questions whether the guest's driver is up, and gateDelay
// what the helper may take to notice it, both for guests that do not connect to [vmm.ReadyPort].
const (
	gateInterval = 50 * time.Millisecond
	gateDelay    = 200 * time.Millisecond
)

// openGate lets connections to the guest through when its driver is up: see [vmm.Gate].
func (s *supervisor) openGate(ctx context.Context) error {
	if s.guest == nil {
		return nil
	}
	connected := make(chan struct{})
	go func() {
		if conn, err := s.guest.Accept(); err == nil { // ends with the listener
			_ = conn.Close()
			close(connected)
		}
	}()
	started := make(chan struct{})
	go func() {
		if s.waitVsock(ctx) {
			close(started)
		}
	}()
	select {
	case <-connected:
	case <-started:
	case <-ctx.Done():
		return nil
	case <-s.ended:
		return nil // run returns it
	}
	if err := os.Rename(s.gate.Path, s.config.VM.Vsock.Path); err != nil {
		return fmt.Errorf("cannot let connections to the guest through: %w", err)
	}
	return nil
}

// waitVsock waits until the VMM says that the guest's driver is up and some time has passed; false:
// the VM ends.
func (s *supervisor) waitVsock(ctx context.Context) bool {
	pause := time.NewTicker(gateInterval)
	defer pause.Stop()
	var since time.Time
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return false
		case <-s.ended:
			return false
		}
		if !since.IsZero() {
			if time.Since(since) >= gateDelay {
				return true
			}
			continue
		}
		if up, err := s.gate.Started(ctx); err == nil && up {
			since = time.Now()
		}
	}
}
