package netsetup

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const watchBuf = 64 << 10 // bytes; more than the kernel puts into one message

// watch learns from the kernel what others do to the host's links, addresses, routes and nftables,
// and signals when that may concern us. A restart of nftables.service, or whoever else runs "nft
// flush ruleset", takes our table along, and with it the pods' way out.
type watch struct {
	bridge string
	index  atomic.Int64           // of the bridge
	own    func(port uint32) bool // says whether a transaction is one of ours
	// pod says whether a pod has the index, and its link should have another hardware address.
	pod         func(index int, addr net.HardwareAddr) (known, odd bool)
	host, links chan struct{} // of size 1: there is something to look at
	done        chan struct{}
	once        sync.Once // to close it
	files       []*os.File

	mu       sync.Mutex
	suspects []uint32     // who has changed our table: netlink ports
	lost     map[int]bool // indexes of pods whose links may not be as they should be
}

// unknownPort is nobody's: messages that have been lost may have been about our table. So it is
// with allLinks.
const (
	unknownPort = 0
	allLinks    = -1
)

// newWatch watches until it is closed, in goroutines that wg counts.
func (m *Manager) newWatch(index int, wg *sync.WaitGroup) (*watch, error) {
	w := &watch{
		bridge: m.cfg.Bridge, own: m.fw.own, pod: m.byIndex, lost: map[int]bool{},
		host: make(chan struct{}, 1), links: make(chan struct{}, 1), done: make(chan struct{}),
	}
	w.follow(index)
	tables, err := listen(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, err
	}
	links, err := listen(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		tables.Close()
		return nil, err
	}
	w.files = []*os.File{tables, links}
	wg.Go(func() { w.run(tables, w.loseTable, w.readTables) })
	wg.Go(func() { w.run(links, func() { w.loseLink(allLinks) }, w.readLinks) })
	return w, nil
}

func listen(protocol int, groups ...int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	sa := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range groups {
		sa.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// follow makes the bridge with the index the one that is watched.
func (w *watch) follow(index int) {
	if w != nil {
		w.index.Store(int64(index))
	}
}

func (w *watch) close() {
	if w == nil {
		return
	}
	w.once.Do(func() {
		close(w.done)
		for _, f := range w.files {
			f.Close()
		}
	})
}

// run gives what is read to read. Where messages were lost, or cannot be read, everything may have
// changed.
func (w *watch) run(f *os.File, changed func(), read func([]syscall.NetlinkMessage)) {
	buf := make([]byte, watchBuf)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err == nil {
			var msgs []syscall.NetlinkMessage
			if msgs, err = syscall.ParseNetlinkMessage(buf[:n]); err == nil {
				read(msgs)
				continue
			}
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		changed()
		if !errors.Is(err, unix.ENOBUFS) {
			time.Sleep(mendEvery) // it may go on like that
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// readTables looks for changes of our table.
func (w *watch) readTables(msgs []syscall.NetlinkMessage) {
	for _, m := range msgs {
		if isOurs(m.Data) {
			w.suspect(m.Header.Pid)
		}
	}
}

func (w *watch) suspect(port uint32) {
	w.mu.Lock()
	if n := len(w.suspects); n == 0 || w.suspects[n-1] != port {
		w.suspects = append(w.suspects, port)
	}
	w.mu.Unlock()
	signal(w.host)
}

// loseTable says that the table may not be as it should be.
func (w *watch) loseTable() { w.suspect(unknownPort) }

// loseLink says that the link of a pod may not be as it should be.
func (w *watch) loseLink(index int) {
	w.mu.Lock()
	w.lost[index] = true
	w.mu.Unlock()
	signal(w.links)
}

// linksLost are the links of which that was said since it was asked last.
func (w *watch) linksLost() map[int]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := w.lost
	w.lost = map[int]bool{}
	return lost
}

// tableLost says whether somebody else has changed our table since it was asked last.
func (w *watch) tableLost() bool {
	w.mu.Lock()
	suspects := w.suspects
	w.suspects = nil
	w.mu.Unlock()
	for _, port := range suspects {
		if port == unknownPort || !w.own(port) {
			return true
		}
	}
	return false
}

// isOurs reads the family and the name of the table: it is the first attribute of everything in a
// table, and of the table itself.
func isOurs(data []byte) bool {
	if len(data) < nl.SizeofNfgenmsg || data[0] != unix.NFPROTO_INET {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[nl.SizeofNfgenmsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_TABLE_NAME {
			return strings.TrimRight(string(a.Value), "\x00") == tableName
		}
	}
	return false
}

// readLinks looks for changes of the bridge and losses of pods' links; their making, which is ours,
// is not worth a look.
func (w *watch) readLinks(msgs []syscall.NetlinkMessage) {
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			w.readLink(m)
		case unix.RTM_DELADDR:
			if len(m.Data) >= unix.SizeofIfAddrmsg && int64(nl.DeserializeIfAddrmsg(m.Data).Index) == w.index.Load() {
				signal(w.host)
			}
		case unix.RTM_DELROUTE:
			if w.concernsRoute(m.Data) {
				signal(w.host)
			}
		}
	}
}

func (w *watch) readLink(m syscall.NetlinkMessage) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return
	}
	link, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil {
		w.loseLink(allLinks)
		return
	}
	const allNew = ^uint32(0) // the link was just made, and is not up yet
	a, change := link.Attrs(), nl.DeserializeIfInfomsg(m.Data).Change
	if int64(a.Index) == w.index.Load() || a.Name == w.bridge {
		signal(w.host)
		return
	}
	index, ok := linkIndex(a.Name)
	if !ok {
		return
	}
	known, odd := w.pod(index, a.HardwareAddr)
	if !known {
		return // we remove it, or it is none of ours
	}
	up := a.RawFlags&unix.IFF_UP != 0
	if m.Header.Type == unix.RTM_DELLINK || up && (a.MasterIndex == 0 || odd) || !up && change&unix.IFF_UP != 0 && change != allNew {
		w.loseLink(index)
	}
}

func (w *watch) concernsRoute(data []byte) bool {
	if len(data) < unix.SizeofRtMsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_OIF {
			return len(a.Value) >= 4 && int64(nl.NativeEndian().Uint32(a.Value)) == w.index.Load()
		}
	}
	return false
}
