package image

import (
	"sync"
	"time"
)

// meter adds up progress and tells of it.
type meter struct {
	mu   sync.Mutex
	tell func(Progress)
	now  Progress
	last time.Time
}

func newMeter(tell func(Progress)) *meter { return &meter{tell: tell} }

func (m *meter) total(n int64) { m.now.Total += n }

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Done += n
	if m.tell != nil && (m.now.Done == m.now.Total || time.Since(m.last) >= progressInterval) {
		m.last = time.Now()
		m.tell(m.now)
	}
}

func (m *meter) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tell = nil
}
