package netsetup

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"
)

// undoTimeout bounds the removal of a network whose Setup has failed, which goes on when the caller
// has stopped waiting.
const undoTimeout = time.Minute

// Setup connects the network namespace ns: loopback, eth0 with an address of each family and
// default routes, and the published ports. It may be called again for a pod, with another namespace
// or other ports too; what is as wanted stays as it is. On an error the pod has no network, and
// nothing of it is left.
//
// Errors: [pod.Conflict] when a port is taken (naming the pod, or that a process has it) or when a
// subnet is the host's already, [pod.Exhausted] without a free address, [pod.Invalid] for ports or
// a namespace that cannot be, [pod.Unsupported] without nft.
func (m *Manager) Setup(ctx context.Context, p PodNetwork, ns *os.File) (Result, error) {
	ports, err := normal(p.Ports)
	if err != nil {
		return Result{}, err
	}
	if err := fileOK(ns); err != nil {
		return Result{}, err
	}
	r, again, err := m.admit(ctx, p, ports)
	if err != nil {
		return Result{}, err
	}
	defer r.busy.Unlock()
	if err := m.build(ctx, r, ports, ns, again); err != nil {
		return Result{}, join(err, m.undo(r))
	}
	return m.result(r), nil
}

// errFull says that all addresses are taken, but some will be free when the reaper has nothing to
// do any more.
var errFull = errors.New("all addresses are taken")

// admit gives the pod a record, which it returns locked, with an address and its ports. again says
// that it had one.
func (m *Manager) admit(ctx context.Context, p PodNetwork, ports []Port) (r *record, again bool, err error) {
	if p.UID == "" {
		return nil, false, pod.Errorf(pod.Invalid, "cannot set up the network of a pod without uid")
	}
	if err := m.cfg.step(ctx, "admit"); err != nil {
		return nil, false, err
	}
	for {
		r, again, err := m.tryAdmit(p, ports)
		switch {
		case errors.Is(err, errFull): // but links are being removed
			if err := m.waitDrained(ctx); err != nil {
				return nil, false, err
			}
			continue
		case err != nil:
			return nil, false, err
		case !again:
			return r, false, nil // locked since it was made
		}
		r.busy.Lock()
		if m.isCurrent(r) {
			return r, true, nil
		}
		r.busy.Unlock() // a Teardown was faster
	}
}

func (m *Manager) tryAdmit(p PodNetwork, ports []Port) (r *record, again bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, pod.Errorf(pod.Unavailable, "cannot set up a network: magikpod is stopping")
	}
	if err := m.load(nil); err != nil {
		return nil, false, err
	}
	if err := m.conflict(p.UID, ports); err != nil {
		return nil, false, err
	}
	if r := m.pods[p.UID]; r != nil {
		return r, true, nil
	}
	index, ok := m.ipam.take()
	if !ok && m.drained != nil {
		return nil, false, errFull
	}
	if !ok {
		return nil, false, pod.Errorf(pod.Exhausted, "cannot give the pod an address: all %d of %s are taken", m.ipam.last-firstIndex+1, m.cfg.IPv4)
	}
	r = &record{uid: p.UID, name: p.Name, index: index, ports: ports}
	r.busy.Lock()
	m.pods[p.UID] = r
	m.change++
	if m.idle != nil {
		m.idle.Stop()
	}
	return r, false, nil
}

// conflict is called with mu held.
func (m *Manager) conflict(uid types.UID, ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	for _, other := range m.pods {
		if other.uid == uid {
			continue
		}
		for _, p := range ports {
			if slices.ContainsFunc(other.ports, p.overlaps) {
				return pod.Errorf(pod.Conflict, "cannot publish port %s: pod %s has it", p, other.name)
			}
		}
	}
	return nil
}

func (m *Manager) isCurrent(r *record) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pods[r.uid] == r
}

// build does the steps of Setup. The firewall is set up beside the link: each takes a few milliseconds.
func (m *Manager) build(ctx context.Context, r *record, ports []Port, ns *os.File, again bool) error {
	if err := m.publish(ctx, r, ports); err != nil {
		return err
	}
	br, err := m.ensureHost(ctx)
	if err != nil {
		return err
	}
	err = m.attach(ctx, r, br, ns, again)
	if err != nil && m.bridgeLost(br) {
		if br, err = m.mendHost(ctx); err == nil {
			err = m.attach(ctx, r, br, ns, again)
		}
	}
	if err == nil {
		err = r.keep(ns)
	}
	if err == nil {
		err = m.cfg.step(ctx, "state")
	}
	if err != nil {
		return err
	}
	return m.save()
}

// attach makes the pod's link and opens its ports.
func (m *Manager) attach(ctx context.Context, r *record, br *netlink.Bridge, ns *os.File, again bool) error {
	opened := make(chan error, 1)
	if len(r.ports) > 0 || again {
		go func() { opened <- m.open(ctx, r) }()
	} else {
		opened <- nil
	}
	err := m.connect(ctx, r, br, ns, again)
	return join(err, <-opened)
}

// publish makes the ports those of the record, and binds to them.
func (m *Manager) publish(ctx context.Context, r *record, ports []Port) error {
	if err := m.cfg.step(ctx, "ports"); err != nil {
		return err
	}
	m.mu.Lock()
	same := slices.Equal(r.ports, ports)
	if same && (r.sockets != nil || len(ports) == 0) {
		m.mu.Unlock()
		return nil
	}
	if err := m.conflict(r.uid, ports); err != nil {
		m.mu.Unlock()
		return err
	}
	reserved := r.sockets
	r.ports, r.sockets = ports, nil
	m.change++
	m.mu.Unlock()
	reserved.close()
	reserved, err := reserve(ports)
	m.mu.Lock()
	r.sockets = reserved
	m.mu.Unlock()
	return err
}

// open makes the record's ports reachable, and those that it does not have any more not.
func (m *Manager) open(ctx context.Context, r *record) error {
	if len(r.ports) > 0 {
		if err := m.cfg.step(ctx, "loopback"); err != nil {
			return err
		}
		if err := m.openLoopback(); err != nil {
			return err
		}
		if err := m.cfg.step(ctx, "firewall"); err != nil {
			return err
		}
	}
	if err := m.fw.sync(ctx, m.elements); err != nil {
		return err
	}
	if len(r.ports) == 0 {
		return nil
	}
	if err := m.cfg.step(ctx, "flows"); err != nil {
		return err
	}
	return dropFlows(r.ports, nil)
}

func (m *Manager) openLoopback() error {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	if err := m.bridge.openLoopback(); err != nil {
		return pod.Errorf(kindOf(err), "cannot open the host's loopback to published ports: %w", err)
	}
	return nil
}

// bridgeLost says whether somebody has removed br; there may be another bridge by now.
func (m *Manager) bridgeLost(br *netlink.Bridge) bool {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	there, err := m.bridge.isThere()
	return err == nil && (!there || m.bridge.link.Index != br.Index)
}

// mendHost makes bridge and table again, and puts the pods' links on the bridge.
func (m *Manager) mendHost(ctx context.Context) (*netlink.Bridge, error) {
	br, err := m.ensureHost(ctx)
	if err == nil && m.isOpen() {
		err = m.openLoopback()
	}
	if err == nil {
		_, err = m.mendLinks(ctx, br, map[int]bool{allLinks: true})
	}
	return br, err
}

// undo removes all of a pod whose Setup has failed, now, and bridge and table with the last one.
func (m *Manager) undo(r *record) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	m.mu.Lock()
	ports := m.forget(r)
	last := len(m.pods) == 0
	m.mu.Unlock()
	ports.close()
	r.release()
	err := m.finish(ctx, []*record{r})
	err = join(err, m.save())
	if last {
		err = join(err, m.removeHost(ctx))
	}
	return err
}
