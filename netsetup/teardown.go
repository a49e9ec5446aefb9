package netsetup

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/magikrun/magikpod/pod"
	"k8s.io/apimachinery/pkg/types"
)

// Teardown takes the pod off the network. Its ports are free when it returns; its link, its address
// and its rules go in the background ([Manager.Sweep] waits for that), the bridge and the table
// some time after the last pod. A pod without network is no error.
func (m *Manager) Teardown(ctx context.Context, uid types.UID) error {
	m.mu.Lock()
	err := m.load(nil)
	if err != nil && m.isNew(uid) {
		err = nil
	}
	if err == nil && m.closed {
		err = pod.Errorf(pod.Unavailable, "cannot remove a network: magikpod is stopping")
	}
	r := m.pods[uid]
	m.mu.Unlock()
	if err != nil || r == nil {
		return err
	}
	r.busy.Lock()
	defer r.busy.Unlock()
	if !m.isCurrent(r) {
		return nil
	}
	if err := m.cfg.step(ctx, "teardown"); err != nil {
		return err
	}
	m.drop(r)
	r.release()
	return m.save()
}

// isNew says whether the pod came after Restore: while the state cannot be read, no Setup has
// succeeded for it. It is called with mu held.
func (m *Manager) isNew(uid types.UID) bool {
	if m.known == nil {
		return false
	}
	_, old := m.known(uid)
	return !old
}

// drop forgets the pod and starts the removal of what it has in the kernel.
func (m *Manager) drop(r *record) {
	m.mu.Lock()
	ports := m.forget(r)
	m.remove(r)
	m.mu.Unlock()
	ports.close()
}

// forget takes the pod out of the records, and returns the sockets on its ports. It is called with
// mu held.
func (m *Manager) forget(r *record) sockets {
	delete(m.pods, r.uid)
	m.ipam.retire(r.index)
	m.change++
	return r.sockets
}

// reapMax bounds the links that are removed at once: the kernel's network stops meanwhile.
const reapMax = 64

// remove leaves what a dropped record has in the kernel to the reaper. It is called with mu held.
// Sweep and Close wait for it.
func (m *Manager) remove(r *record) {
	m.dead = append(m.dead, r)
	if m.drained == nil {
		m.drained = make(chan struct{})
		go m.reap()
	}
}

// reap removes what dropped records have in the kernel, until there are none. All that have come
// meanwhile go together: the kernel waits some 20 ms until nobody uses a link, and as long for
// many.
func (m *Manager) reap() {
	for {
		m.mu.Lock()
		batch := slices.Clone(m.dead[:min(len(m.dead), reapMax)])
		if len(batch) == 0 {
			close(m.drained)
			m.drained = nil
			m.armIdle()
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
		err := m.finish(ctx, batch)
		cancel()
		m.mu.Lock()
		m.dead = m.dead[len(batch):]
		if err != nil {
			m.stuck = append(m.stuck, batch...)
			m.stuckWhy = err
		}
		m.mu.Unlock()
	}
}

// finish removes what dropped records have in the kernel, and frees their addresses.
func (m *Manager) finish(ctx context.Context, gone []*record) error {
	if err := m.cfg.step(ctx, "remove"); err != nil {
		return err
	}
	indexes := make([]int, 0, len(gone))
	var ports []Port
	var addrs []netip.Addr
	for _, r := range gone {
		indexes = append(indexes, r.index)
		if len(r.ports) > 0 {
			ports = append(ports, r.ports...)
			addrs = append(addrs, m.addrs(r.index)...)
		}
	}
	err := m.disconnect(indexes...)
	if len(ports) > 0 {
		if m.isUp() {
			err = join(err, m.fw.sync(ctx, m.elements))
		}
		err = join(err, dropFlows(ports, addrs))
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, index := range indexes {
		m.ipam.release(index)
	}
	return nil
}

func (m *Manager) isUp() bool {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	return m.up
}

// armIdle is called with mu held, when the last link has gone.
func (m *Manager) armIdle() {
	if m.closed || len(m.pods) > 0 {
		return
	}
	if m.idle == nil {
		// What cannot be removed is tried again by Sweep and Close, which return why.
		m.idle = time.AfterFunc(m.cfg.Idle, func() { _ = m.removeHost(context.Background()) })
		return
	}
	m.idle.Reset(m.cfg.Idle)
}
