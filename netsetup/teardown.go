package netsetup

import (
	"context"
	"time"

	"github.com/magikrun/magikpod/pod"
	"k8s.io/apimachinery/pkg/types"
)

// Teardown takes the pod off the network. Its ports are free when it returns; its link, its address and its rules go in the background
// ([Manager.Sweep] waits for that), the bridge and the table some time after the last pod. A pod without network is no error.
func (m *Manager) Teardown(ctx context.Context, uid types.UID) error {
	m.mu.Lock()
	err := m.load(nil)
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
	return m.save()
}

// drop forgets the pod and starts the removal of what it has in the kernel.
func (m *Manager) drop(r *record) {
	m.mu.Lock()
	held := r.held
	delete(m.pods, r.uid)
	m.ipam.retire(r.index)
	m.change++
	m.remove(r)
	m.mu.Unlock()
	held.close()
}

// remove starts a goroutine that removes what a dropped record has in the kernel. It is called with mu held. Sweep and Close wait for it.
func (m *Manager) remove(r *record) {
	if m.removals++; m.removals == 1 {
		m.drained = make(chan struct{})
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
		defer cancel()
		err := m.finish(ctx, r)
		m.mu.Lock()
		defer m.mu.Unlock()
		if err != nil {
			m.stuck = append(m.stuck, r.index)
		}
		if m.removals--; m.removals == 0 {
			close(m.drained)
			m.drained = nil
			m.armIdle()
		}
	}()
}

// finish removes what a dropped record has in the kernel, and frees its address.
func (m *Manager) finish(ctx context.Context, r *record) error {
	err := m.disconnect(r.index)
	if len(r.ports) > 0 {
		if m.isUp() {
			err = join(err, m.fw.sync(ctx, m.elements))
		}
		err = join(err, dropFlows(r.ports, m.addrs(r.index)))
	}
	if err == nil {
		m.mu.Lock()
		m.ipam.release(r.index)
		m.mu.Unlock()
	}
	return err
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
		// What cannot be removed is tried again by Sweep and Close, which tell.
		m.idle = time.AfterFunc(m.cfg.Idle, func() { _ = m.removeHost(context.Background()) })
		return
	}
	m.idle.Reset(m.cfg.Idle)
}
