package netsetup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/pod"
)

const (
	mendEvery  = time.Second           // how often is looked for what the kernel does not report
	mendSettle = 50 * time.Millisecond // what belongs together comes together
	mendWindow = 30 * time.Second      // where somebody undoes each repair,
	mendMax    = 40                    // so many are made in that time
)

// keepUp mends what others change about the pods' network: at once when the watch reports it, and
// each second what the kernel reports to nobody, such as sysctls. The number of repairs has a
// limit, lest we fight with another program for the whole of a CPU.
func (m *Manager) keepUp(w *watch) {
	tick := time.NewTicker(mendEvery)
	defer tick.Stop()
	var since time.Time
	repairs := 0
	for {
		var links map[int]bool
		select {
		case <-w.done:
			return
		case <-w.links:
			links = w.linksLost()
		case <-w.host:
		case <-tick.C:
		}
		if time.Since(since) > mendWindow {
			since, repairs = time.Now(), 0
		}
		pause := mendSettle
		if m.mend(links, w) {
			repairs++
		}
		if repairs >= mendMax {
			pause = time.Until(since.Add(mendWindow))
		}
		select {
		case <-w.done:
			return
		case <-time.After(pause):
		}
	}
}

// mend looks at bridge, table and state file, and at the pods' links of these indexes, and repairs
// what is not as it should be. What could not be asked is left as it is until the next time. mended says
// that something was repaired, or could not be.
func (m *Manager) mend(links map[int]bool, w *watch) (mended bool) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	var said []string
	m.hostMu.Lock()
	if !m.up {
		m.hostMu.Unlock()
		return false
	}
	faults, err := m.bridge.faults(m.isOpen() && m.bridge.open) // a Setup may be just about to open it
	if len(faults) > 0 {
		said = append(said, "bridge "+m.cfg.Bridge+": "+strings.Join(faults, ", "))
		links = map[int]bool{allLinks: true}
		err = m.restoreBridge(ctx)
	}
	if err == nil && w.tableLost() {
		said = append(said, "the table "+tableName+" of nftables was changed")
		if err = m.fw.rebuild(ctx, m.elements); err != nil {
			w.loseTable()
		}
	}
	br := m.bridge.link
	m.hostMu.Unlock()
	if len(links) > 0 && br != nil {
		more, lerr := m.mendLinks(ctx, br, links)
		said, err = append(said, more...), join(err, lerr)
	}
	more, serr := m.mendState()
	said, err = append(said, more...), join(err, serr)
	m.reportMended(said, err)
	return len(said) > 0 || err != nil
}

// restoreBridge is called with hostMu held.
func (m *Manager) restoreBridge(ctx context.Context) error {
	if _, err := m.bridge.up(ctx); err != nil {
		return err
	}
	m.watch.follow(m.bridge.link.Attrs().Index)
	if !m.isOpen() {
		return nil
	}
	return m.bridge.openLoopback()
}

// reportMended reports what was repaired, and once what could not be.
func (m *Manager) reportMended(said []string, err error) {
	text := ""
	if err != nil {
		text = "cannot repair the pods' network: " + err.Error()
	}
	m.mu.Lock()
	news := text != m.mendErr
	m.mendErr = text
	m.mu.Unlock()
	switch {
	case err == nil && len(said) > 0:
		m.report("the pods' network was changed by another program and is repaired: " + strings.Join(said, "; "))
	case err != nil && news:
		m.report(strings.Join(append(said, text), "; "))
	}
}

// maxLookups is the number of links up to which each is asked for: the time that the kernel takes
// to list all of them grows with the square of the pods.
const maxLookups = 16

// mendLinks puts the pods' links on the bridge, and makes those again that somebody has removed. A
// pod whose Setup or Teardown is under way is looked at again: it may not notice that the bridge
// became another one.
func (m *Manager) mendLinks(ctx context.Context, br *netlink.Bridge, suspects map[int]bool) (said []string, err error) {
	lookup := m.nl.LinkByName
	if suspects[allLinks] || len(suspects) > maxLookups {
		if lookup, err = m.listLinks(); err != nil {
			return nil, err
		}
	}
	for _, r := range m.records() {
		if !suspects[allLinks] && !suspects[r.index] {
			continue
		}
		if !r.busy.TryLock() {
			m.lookAgain(r)
			continue
		}
		if m.isCurrent(r) {
			link, rerr := lookup(linkName(r.index))
			text := ""
			if rerr == nil || isNoLink(rerr) {
				text, rerr = m.mendLink(ctx, r, link, br)
			}
			if text != "" {
				said = append(said, text)
			}
			err = join(err, rerr)
		}
		r.busy.Unlock()
	}
	return said, err
}

// listLinks returns the look-up in a list of all links.
func (m *Manager) listLinks() (func(name string) (netlink.Link, error), error) {
	list, err := netlist.Whole(m.nl.LinkList)
	if err != nil {
		return nil, pod.Errorf(kindOf(err), "cannot list the host's links: %w", err)
	}
	links := make(map[string]netlink.Link, len(list))
	for _, link := range list {
		links[link.Attrs().Name] = link
	}
	return func(name string) (netlink.Link, error) { return links[name], nil }, nil
}

// lookAgain has keepUp look at the link once more.
func (m *Manager) lookAgain(r *record) {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	if m.watch != nil {
		m.watch.loseLink(r.index)
	}
}

// mendLink is called with the record locked. link is nil when it is not there.
func (m *Manager) mendLink(ctx context.Context, r *record, link netlink.Link, br *netlink.Bridge) (said string, err error) {
	switch {
	case link == nil && r.ns == nil:
		m.warn("pod %s has lost its link %s, and is without network until it is restarted", r.name, linkName(r.index))
		return "", nil
	case link == nil:
		if err := m.connect(ctx, r, br, r.ns, false); err != nil {
			return "", err
		}
		return "pod " + r.name + ": its link was removed", redirectAgain(r.ns)
	case link.Attrs().MasterIndex == br.Index && link.Attrs().RawFlags&unix.IFF_UP != 0 && !m.bridge.isOdd(r, link.Attrs().HardwareAddr):
		return "", nil
	}
	if err := m.reattach(r, link, br); err != nil {
		return "", err
	}
	return "pod " + r.name + ": its link was down, not on the bridge, or had another hardware address", nil
}

// reattach puts the host's end of a pod's link on the bridge.
func (m *Manager) reattach(r *record, link netlink.Link, br *netlink.Bridge) error {
	err := m.nl.LinkSetMasterByIndex(link, br.Index)
	if err == nil {
		err = m.openLink(r, link, br)
	}
	if err == nil {
		err = m.nl.LinkSetUp(link)
	}
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot put link %s back on the bridge: %w", linkName(r.index), err)
	}
	return nil
}

// mendState writes the state file again when somebody has removed it.
func (m *Manager) mendState() (said []string, err error) {
	m.saveMu.Lock()
	_, err = os.Lstat(m.cfg.StateFile)
	lost := m.stored > 0 && errors.Is(err, fs.ErrNotExist)
	if lost {
		m.written = 0
	}
	m.saveMu.Unlock()
	if !lost {
		return nil, nil
	}
	return []string{"the state file " + m.cfg.StateFile + " was removed"}, m.save()
}

// isOpen says whether a pod has a published port.
func (m *Manager) isOpen() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.pods {
		if len(r.ports) > 0 {
			return true
		}
	}
	return false
}
