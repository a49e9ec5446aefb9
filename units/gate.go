package units

import (
	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/buslink"
)

// gate keeps from the connection, before anything is decoded, what the manager has no use for: the
// bus cannot be asked for the changes of our units alone. It implements [buslink.Gate].
type gate struct{ *Manager }

// Screen implements [buslink.Gate]. A unit whose changes count is tracked before systemd is called.
func (g gate) Screen(h *buslink.Head) bool {
	if h.Type == dbus.TypeSignal && h.Interface == propsIface && !g.isTracked(h.Path) {
		return false
	}
	return buslink.Small(h)
}

// Deliver implements [buslink.Gate].
func (gate) Deliver(m *buslink.Message) { m.Forward() }

// Trusts implements [buslink.Truster].
func (g gate) Trusts(h *buslink.Head) bool { return g.queue.trusts(h.Sender) }

func (m *Manager) isTracked(path dbus.ObjectPath) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.paths[path]
	return ok
}
