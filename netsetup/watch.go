package netsetup

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const watchBuf = 64 << 10 // bytes; more than the kernel puts into one message

// watch is told by the kernel about changes of the host's nftables, and tells when our table has gone: a restart of nftables.service, or whoever
// else runs "nft flush ruleset", takes it along, and with it the pods' way out.
type watch struct {
	file  *os.File
	table string
	gone  bool // in the transaction that is being read
}

// watchTable calls lost, in a goroutine that wg counts, each time table has gone, until the watch is closed.
func watchTable(table string, wg *sync.WaitGroup, lost func()) (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	w := &watch{file: os.NewFile(uintptr(fd), "nftables"), table: table}
	wg.Go(func() { w.run(lost) })
	return w, nil
}

func (w *watch) close() {
	if w != nil {
		w.file.Close()
	}
}

func (w *watch) run(lost func()) {
	buf := make([]byte, watchBuf)
	for {
		n, err := w.file.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // there was more than the socket holds: it may have been among that
			w.gone = false
			lost()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return
		case w.read(buf[:n]):
			lost()
		}
	}
}

// read says whether a transaction that the messages complete has removed the table. One that replaces it has not.
func (w *watch) read(data []byte) (lost bool) {
	msgs, err := syscall.ParseNetlinkMessage(data)
	if err != nil {
		return false
	}
	for _, m := range msgs {
		switch int(m.Header.Type) - unix.NFNL_SUBSYS_NFTABLES<<8 {
		case unix.NFT_MSG_DELTABLE:
			w.gone = w.gone || w.isOurs(m.Data)
		case unix.NFT_MSG_NEWTABLE:
			w.gone = w.gone && !w.isOurs(m.Data)
		case unix.NFT_MSG_NEWGEN: // ends a transaction
			lost = lost || w.gone
			w.gone = false
		}
	}
	return lost
}

// isOurs reads the table's family and name.
func (w *watch) isOurs(data []byte) bool {
	if len(data) < nl.SizeofNfgenmsg || data[0] != unix.NFPROTO_INET {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[nl.SizeofNfgenmsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_TABLE_NAME {
			return strings.TrimRight(string(a.Value), "\x00") == w.table
		}
	}
	return false
}

// tableLost lays the table anew, unless it is not wanted any more.
func (m *Manager) tableLost() {
	m.hostMu.Lock()
	defer m.hostMu.Unlock()
	if !m.up {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if err := m.fw.rebuild(ctx, m.elements); err != nil {
		m.warn("%v", pod.Errorf(pod.KindOf(err), "cannot lay again the table that somebody has removed: %w", err))
	}
}
