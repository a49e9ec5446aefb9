package netsetup

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"
)

// Restore is called once, when the daemon starts: it reads the state file and compares it with the kernel. Pods for which keep says true stay
// connected, and get back what was lost of bridge, table and ports; what others have left is removed. A pod to keep that only the kernel
// knows, because the state file was lost, keeps its address, and its ports come back with its next Setup.
//
// Errors: [pod.Conflict] when pods are to be kept and the configuration has other subnets than theirs.
func (m *Manager) Restore(ctx context.Context, keep func(uid types.UID) bool) error {
	m.mu.Lock()
	err := m.load(keep)
	var drop, kept []*record
	for _, r := range m.pods {
		if keep(r.uid) {
			kept = append(kept, r)
		} else {
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
	if err := m.adopt(ctx, keep); err != nil {
		return err
	}
	if err := m.restoreHost(ctx); err != nil {
		return err
	}
	for _, r := range kept {
		held, err := reserve(r.ports)
		if err != nil {
			m.warn("pod %s: %v", r.name, err) // it has had the port, and keeps it
		}
		m.mu.Lock()
		r.held = held
		m.mu.Unlock()
	}
	return m.save()
}

// load reads the state file once. keep is Restore's, or nil. It is called with mu held.
func (m *Manager) load(keep func(uid types.UID) bool) error {
	if m.loaded {
		return nil
	}
	s, warning, err := readState(m.cfg.StateFile)
	if err != nil {
		return err
	}
	if warning != "" {
		m.warnings = append(m.warnings, warning)
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
			m.warnings = append(m.warnings, fmt.Sprintf("the network state of pod %s makes no sense and is dropped", p.Name))
			continue
		}
		m.pods[p.UID] = &record{uid: p.UID, name: p.Name, index: p.Index, ports: ports}
	}
	m.loaded = true
	return nil
}

// adopt looks at our links that no record has: a pod's to keep gets one, others go.
func (m *Manager) adopt(ctx context.Context, keep func(uid types.UID) bool) error {
	if err := m.cfg.step(ctx, "restore-links"); err != nil {
		return err
	}
	links, err := dump(m.nl.LinkList)
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot list the host's links: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, link := range links {
		index, uid, ok := ours(link)
		if !ok || m.ipam.used[index] != 0 {
			continue
		}
		r := &record{uid: uid, name: string(uid), index: index}
		if keep(uid) && m.pods[uid] == nil && m.ipam.claim(index, byPod) {
			m.pods[uid] = r
			m.change++
			continue
		}
		m.ipam.claim(index, quarantine)
		m.remove(r)
	}
	return nil
}

// restoreHost makes bridge and table as the pods need them; without pods it removes what is left of them.
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

// reattach puts the host's end of a pod's link on the bridge, if it is not: somebody may have removed the bridge.
func (m *Manager) reattach(r *record, br *netlink.Bridge) error {
	link, err := m.nl.LinkByName(linkName(r.index))
	if isNoLink(err) {
		return nil // the pod's namespace is gone, its next Setup makes another
	}
	if err == nil && link.Attrs().MasterIndex != br.Index {
		err = join(m.nl.LinkSetMasterByIndex(link, br.Index), m.nl.LinkSetUp(link))
	}
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot put link %s back on the bridge: %w", linkName(r.index), err)
	}
	return nil
}

func (m *Manager) records() []*record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.pods))
}

// maxWarnings bounds what is remembered: they may come for as long as the daemon runs.
const maxWarnings = 100

func (m *Manager) warn(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := fmt.Sprintf(format, args...); len(m.warnings) < maxWarnings && !slices.Contains(m.warnings, w) {
		m.warnings = append(m.warnings, w)
	}
}
