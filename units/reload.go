package units

import (
	"context"
	"time"
)

// reloadMax is how long a reload of systemd may take before it is taken for one whose end was missed.
const reloadMax = 90 * time.Second

// setReloading works on Reloading: systemd begins to reload its configuration or to execute itself
// anew (true), or has done so.
func (m *Manager) setReloading(active bool) {
	if !active {
		m.reloading = false
		go m.refreshAll()
		return
	}
	m.reloads++
	m.reloading = true
	this := m.reloads
	time.AfterFunc(reloadMax, func() {
		m.do(func() {
			if m.reloading && m.reloads == this {
				m.setReloading(false)
			}
		})
	})
}

// refreshAll asks for the state of every tracked unit: a reload says nothing of those that did not
// come through it.
func (m *Manager) refreshAll() {
	m.mu.Lock()
	names := make([]string, 0, len(m.units))
	for name, r := range m.units {
		if !r.pending {
			names = append(names, name)
		}
	}
	m.mu.Unlock()
	for _, name := range names {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		_, err := m.Refresh(ctx, name)
		cancel()
		if err != nil {
			return // the connection is lost, or systemd hangs: Lost says so, or the next signal does
		}
	}
}
