package image

import (
	"sync"
	"time"
)

// meter adds up progress and reports it.
type meter struct {
	mu     sync.Mutex
	report func(Progress)
	now    Progress
	last   time.Time
}

func newMeter(report func(Progress)) *meter { return &meter{report: report} }

func (m *meter) total(n int64) { m.now.Total += n }

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Done += n
	if m.report != nil && (m.now.Done == m.now.Total || time.Since(m.last) >= progressInterval) {
		m.last = time.Now()
		m.report(m.now)
	}
}

func (m *meter) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report = nil
}
