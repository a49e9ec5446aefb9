package netsetup

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Manager sets up the networks of the pods of one host. Its methods may be called concurrently.
//
// Locks are taken in the order record.busy, hostMu, mu. mu is never held while the kernel works.
type Manager struct {
	cfg Config
	nl  *netlink.Handle
	fw  *firewall

	hostMu sync.Mutex // guards what pods share in the kernel
	bridge *bridge
	up     bool // bridge and table have been made; whoever changes them is watched
	// present says that there may be something of bridge and table
	present bool
	watch   *watch // nil when the table is not there
	watches sync.WaitGroup

	restores sync.WaitGroup // of retryRestore

	saveMu  sync.Mutex // held while the state file is written
	written uint64     // the change that the file has
	stored  int        // the pods that the file has

	mu       sync.Mutex // guards what follows
	loaded   bool
	known    func(uid types.UID) (PodNetwork, bool) // Restore's
	warned   []string                               // by warn
	mendErr  string                                 // what could not be repaired, as it was reported last
	ipam     *ipam
	pods     map[types.UID]*record
	change   uint64        // counts the changes of pods
	dead     []*record     // dropped, and waiting for the reaper or with it
	drained  chan struct{} // closed when dead is empty; nil when the reaper does not run
	stuck    []*record     // what the reaper could not remove
	stuckWhy error
	idle     *time.Timer // runs when there are no pods
	closed   bool
	closing  chan struct{} // closed when closed is true
}

// record is what the Manager knows about a pod. uid, name, index and old never change; mu guards
// the rest.
type record struct {
	busy    sync.Mutex // held by the Setup or Teardown of the pod
	uid     types.UID
	name    string
	index   int
	old     bool // it was in the state file
	ports   []Port
	sockets sockets
	// ns is the namespace that Setup has connected, kept so that a link that somebody removes can
	// be made again; nil after a restart of the daemon. busy guards it.
	ns *os.File
}

// keep makes ns the record's namespace. The caller goes on owning ns.
func (r *record) keep(ns *os.File) error {
	r.release()
	err := rawfd.Use(ns, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			r.ns = os.NewFile(uintptr(dup), "netns")
		}
		return err
	})
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot keep the network namespace: %w", err)
	}
	return nil
}

// release lets go of the namespace.
func (r *record) release() {
	if r.ns != nil {
		r.ns.Close()
		r.ns = nil
	}
}

// Result is what a pod has on the network. IPv4 comes first.
type Result struct {
	IPs, Gateways []netip.Addr
}

// New returns a Manager for the network namespace of the caller. It changes nothing: bridge and
// table are made with the first pod. [Manager.Restore] comes before the first Setup. Errors:
// [pod.Invalid] for a configuration that cannot work.
func New(cfg Config) (*Manager, error) {
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, pod.Errorf(kindOf(err), "cannot speak to the kernel's network: %w", err)
	}
	m := &Manager{cfg: cfg, nl: nl, ipam: newIPAM(cfg.IPv4, cfg.IPv6), pods: map[types.UID]*record{}, closing: make(chan struct{})}
	m.bridge = &bridge{cfg: &m.cfg, nl: nl, ipv6: hasIPv6()}
	m.fw = &firewall{cfg: &m.cfg, nft: findNft()}
	return m, nil
}

// Lookup is what the pod has on the network; false when it has no Setup.
func (m *Manager) Lookup(uid types.UID) (Result, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.pods[uid]
	if r == nil {
		return Result{}, false
	}
	return m.result(r), true
}

func (m *Manager) result(r *record) Result {
	return Result{IPs: m.addrs(r.index), Gateways: m.addrs(1)}
}

// ensureHost makes what pods share: bridge and table. A removal that runs is waited for, and one
// that comes later finds the pod and does nothing.
func (m *Manager) ensureHost(ctx context.Context) (*netlink.Bridge, error) {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	if m.up {
		// Where the kernel does not say so, the bridge is not taken for lost.
		if there, err := m.bridge.isThere(); there || err != nil {
			return m.bridge.link, nil
		}
	}
	was := m.present
	made, err := m.bridge.up(ctx)
	if err == nil {
		err = m.cfg.step(ctx, "table")
	}
	if err == nil {
		err = m.fw.rebuild(ctx, m.elements)
	}
	if err == nil {
		m.up, m.present = true, true
		m.startWatch()
		return m.bridge.link, nil
	}
	if made {
		derr := m.bridge.down()
		// An nft that was stopped may have done its work.
		m.present = was || derr != nil || pod.KindOf(err) == pod.Unavailable
		err = join(err, derr)
	}
	return nil, err
}

// startWatch is called with hostMu held. Without the watch all but repairs works.
func (m *Manager) startWatch() {
	m.watch.close()
	w, err := m.newWatch(m.bridge.link.Attrs().Index, &m.watches)
	if m.watch = w; err != nil {
		m.warn("cannot watch the host's network: %v", err)
		return
	}
	m.watches.Go(func() { m.keepUp(w) })
}

// removeHost removes what pods share unless there is a pod or a link of one.
func (m *Manager) removeHost(ctx context.Context) error {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	m.mu.Lock()
	busy := len(m.pods) > 0 || len(m.dead) > 0
	m.mu.Unlock()
	if busy || !m.present {
		return nil
	}
	m.up = false
	m.watch.close()
	m.watch = nil
	if err := join(m.fw.remove(ctx), m.bridge.down()); err != nil {
		return err
	}
	m.present = false
	return nil
}

// elements are those of all pods.
func (m *Manager) elements() elements {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := elements{}
	for _, r := range m.pods {
		if len(r.ports) == 0 {
			continue
		}
		addrs := append(m.addrs(r.index), netip.Addr{})
		for _, p := range r.ports {
			e.add(p, addrs[0], addrs[1])
		}
	}
	return e
}

// save writes the state file. Callers that come while it is written share the next writing.
func (m *Manager) save() error {
	m.mu.Lock()
	mine := m.change
	m.mu.Unlock()
	m.saveMu.Lock()
	defer m.saveMu.Unlock()
	if m.written >= mine {
		return nil
	}
	m.mu.Lock()
	now := m.change
	s := state{Version: stateVersion, IPv4: m.cfg.IPv4, IPv6: m.cfg.IPv6}
	for _, uid := range slices.Sorted(maps.Keys(m.pods)) {
		r := m.pods[uid]
		s.Pods = append(s.Pods, saved{UID: r.uid, Name: r.name, Index: r.index, Ports: r.ports})
	}
	m.mu.Unlock()
	if err := s.write(m.cfg.StateFile); err != nil {
		return err
	}
	m.written, m.stored = now, len(s.Pods)
	return nil
}

// Sweep waits until the links of pods that are gone have been removed, and removes bridge and table
// if there is no pod. It tries again what could not be removed before.
func (m *Manager) Sweep(ctx context.Context) error {
	m.mu.Lock()
	stuck := m.stuck
	m.stuck = nil
	for _, r := range stuck {
		m.remove(r)
	}
	m.mu.Unlock()
	if err := m.waitDrained(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	left, why := len(m.stuck), m.stuckWhy
	m.mu.Unlock()
	if left > 0 {
		return pod.Errorf(pod.KindOf(why), "cannot remove the networks of %d pods that are gone: %w", left, why)
	}
	return m.removeHost(ctx)
}

// waitDrained waits until the reaper has nothing to do.
func (m *Manager) waitDrained(ctx context.Context) error {
	m.mu.Lock()
	drained := m.drained
	m.mu.Unlock()
	if drained == nil {
		return nil
	}
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return pod.Errorf(pod.Unavailable, "cannot wait for links to go: %w", context.Cause(ctx))
	}
}

// Close waits for what runs in the background, removes bridge and table if there is no pod, and
// frees the ports. The networks of pods that are there stay. No Setup may run, and none may follow.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	close(m.closing)
	if m.idle != nil {
		m.idle.Stop()
	}
	m.mu.Unlock()
	m.restores.Wait()
	err := m.Sweep(context.Background())
	m.hostMu.Lock() // an idle timer that has fired may still be at work
	m.up, m.present = false, false
	m.watch.close()
	m.hostMu.Unlock()
	m.watches.Wait()
	m.mu.Lock()
	for _, r := range m.pods {
		r.sockets.close()
		r.sockets = nil
		r.release()
	}
	m.mu.Unlock()
	m.nl.Close()
	return err
}

// fileOK refuses a namespace that is not the pod's own.
func fileOK(ns *os.File) error {
	if ns == nil {
		return pod.Errorf(pod.Invalid, "cannot set up a network: no network namespace was given")
	}
	same, err := sameNetns(ns)
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot read the network namespace: %w", err)
	}
	if same {
		return pod.Errorf(pod.Invalid, "cannot set up a pod's network in the host's namespace")
	}
	return nil
}
