package netsetup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/pod"
)

// Restore is called once, when the daemon starts: it reads the state file and compares it with the
// kernel. Pods that known knows stay connected, and get back what was lost of bridge, table and
// ports; what others have left is removed. A pod that only the kernel knows, because the state file
// was lost, keeps its address, and gets the ports that known names.
//
// What cannot be read is neither taken for lost nor written again: the error is returned, and
// Restore goes on by itself as soon as it can be read.
//
// Errors: [pod.Conflict] when pods are to be kept and the configuration has other subnets than theirs.
func (m *Manager) Restore(ctx context.Context, known func(uid types.UID) (PodNetwork, bool)) error {
	m.mu.Lock()
	m.known = known
	m.mu.Unlock()
	err := m.restore(ctx, known)
	if err != nil {
		m.restores.Go(func() { m.retryRestore(known, err) })
	}
	return err
}

// retryRestore ends with the Manager.
func (m *Manager) retryRestore(known func(uid types.UID) (PodNetwork, bool), err error) {
	for err != nil {
		select {
		case <-m.closing:
			return
		case <-time.After(mendEvery):
		}
		if err = m.restore(context.Background(), known); err == nil {
			m.report("the pods' networks are restored after all")
		}
	}
}

func (m *Manager) restore(ctx context.Context, known func(uid types.UID) (PodNetwork, bool)) error {
	keep := func(uid types.UID) bool { _, ok := known(uid); return ok }
	m.mu.Lock()
	err := m.load(keep)
	var drop, kept []*record
	for _, r := range m.pods {
		switch {
		case keep(r.uid):
			kept = append(kept, r)
		case r.old: // others have come since an attempt that failed
			drop = append(drop, r)
		}
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	for _, r := range drop {
		m.drop(r)
	}
	adopted, err := m.adopt(ctx, known)
	if err != nil {
		return err
	}
	if err := m.restoreHost(ctx); err != nil {
		return err
	}
	for _, r := range append(kept, adopted...) {
		if r.sockets != nil {
			continue
		}
		reserved, err := reserve(r.ports)
		if err != nil {
			m.warn("pod %s: %v", r.name, err) // it has had the port, and keeps it
		}
		m.mu.Lock()
		r.sockets = reserved
		m.mu.Unlock()
	}
	return m.save()
}

// load reads the state file once; an error is no state. keep is Restore's, or nil. It is called
// with mu held.
func (m *Manager) load(keep func(uid types.UID) bool) error {
	if m.loaded {
		return nil
	}
	s, warning, err := readState(m.cfg.StateFile)
	if err != nil {
		return err
	}
	if warning != "" {
		m.report(warning)
	}
	if len(s.Pods) > 0 && (s.IPv4 != m.cfg.IPv4 || s.IPv6 != m.cfg.IPv6) {
		if keep == nil || slices.ContainsFunc(s.Pods, func(p saved) bool { return keep(p.UID) }) {
			return pod.Errorf(pod.Conflict, "cannot change the pods' subnets from %s and %s while there are pods: stop them first", s.IPv4, s.IPv6)
		}
		s.Pods = nil // their links are found without the state
	}
	for _, p := range s.Pods {
		ports, err := normal(p.Ports)
		if err != nil || p.UID == "" || m.pods[p.UID] != nil || !m.ipam.claim(p.Index, byPod) {
			m.report(fmt.Sprintf("the network state of pod %s makes no sense and is dropped", p.Name))
			continue
		}
		m.pods[p.UID] = &record{uid: p.UID, name: p.Name, index: p.Index, ports: ports, old: true}
	}
	m.loaded = true
	return nil
}

// adopt looks at our links that no record has: a known pod gets one, which is returned, other links go.
func (m *Manager) adopt(ctx context.Context, known func(uid types.UID) (PodNetwork, bool)) (adopted []*record, err error) {
	if err := m.cfg.step(ctx, "restore-links"); err != nil {
		return nil, err
	}
	links, err := netlist.Whole(m.nl.LinkList)
	if err != nil {
		return nil, pod.Errorf(kindOf(err), "cannot list the host's links: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, link := range links {
		index, uid, ok := ours(link)
		if !ok || m.ipam.used[index] != 0 {
			continue
		}
		r := &record{uid: uid, name: string(uid), index: index}
		if p, ok := known(uid); ok && m.pods[uid] == nil && m.ipam.claim(index, byPod) {
			r.name = p.Name
			if r.ports, err = normal(p.Ports); err == nil {
				err = m.conflict(uid, r.ports)
			}
			if err != nil {
				r.ports = nil
				m.report("pod " + p.Name + ": " + err.Error())
			}
			m.pods[uid] = r
			m.change++
			adopted = append(adopted, r)
			continue
		}
		m.ipam.claim(index, quarantine)
		m.remove(r)
	}
	if len(adopted) > 0 {
		m.report(fmt.Sprintf("the network state %s did not have %d pods that run: they keep their addresses and published ports", m.cfg.StateFile, len(adopted)))
	}
	return adopted, nil
}

// restoreHost makes bridge and table as the pods need them; without pods it removes what is left of
// them.
func (m *Manager) restoreHost(ctx context.Context) error {
	m.mu.Lock()
	pods := len(m.pods)
	m.change++
	m.mu.Unlock()
	if pods > 0 {
		_, err := m.mendHost(ctx)
		return err
	}
	m.hostMu.Lock()
	found, err := m.bridge.find()
	m.present = found
	m.hostMu.Unlock()
	if err != nil || !found {
		return nil // nothing to remove, or another's: the first Setup says so
	}
	return m.Sweep(ctx)
}

func (m *Manager) records() []*record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.pods))
}

// maxWarnings bounds what is remembered: they may come for as long as the daemon runs.
const maxWarnings = 100

// warn reports once.
func (m *Manager) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	m.mu.Lock()
	known := len(m.warned) >= maxWarnings || slices.Contains(m.warned, w)
	if !known {
		m.warned = append(m.warned, w)
	}
	m.mu.Unlock()
	if !known {
		m.report(w)
	}
}

func (m *Manager) report(text string) {
	if m.cfg.Report != nil {
		m.cfg.Report(text)
	}
}
