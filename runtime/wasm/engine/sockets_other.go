//go:build !unix

package engine

import (
	"context"
	"time"
)

// waitFor pauses for a moment: there is no poll(2) here.
func (p *poller) waitFor(ctx context.Context, asked []subscription, limit time.Duration) map[int]bool {
	ready := map[int]bool{}
	for i, one := range asked {
		if one.kind != eventClock {
			ready[i], limit = true, min(limit, 5*time.Millisecond)
		}
	}
	sleep(ctx, limit)
	return ready
}

func hangUp(int) {}

func openSockets() []openSocket { return nil }
