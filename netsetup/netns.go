package netsetup

import (
	"cmp"
	"errors"
	"os"

	"github.com/magikrun/magikpod/internal/ownthread"
	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const threadNS = "/proc/thread-self/ns/net"

// NewNamespace makes a network namespace whose loopback is up and returns the open file that keeps
// it alive. The caller closes it. Errors: [pod.Denied] without CAP_SYS_ADMIN, [pod.Exhausted] when
// the host has too many.
func NewNamespace() (*os.File, error) {
	var file *os.File
	err := ownthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		f, err := os.Open(threadNS)
		if err != nil {
			return err
		}
		if err := withHandle(setLoopbackUp); err != nil {
			f.Close()
			return err
		}
		file = f
		return nil
	})
	if err != nil {
		return nil, pod.Errorf(kindOf(err), "cannot make a network namespace: %w", err)
	}
	return file, nil
}

// withHandle calls fn with a handle for the network of the calling thread's namespace.
func withHandle(fn func(h *netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// setLoopbackUp needs no look-up: the loopback is the first link of each namespace.
func setLoopbackUp(h *netlink.Handle) error {
	lo := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
	if err := h.LinkSetUp(lo); err != nil {
		return pod.Errorf(kindOf(err), "cannot bring up lo: %w", err)
	}
	return nil
}

// inNetns runs fn with its thread in the network namespace ns. It is the only function that enters
// one. fn may not start goroutines.
func inNetns(ns *os.File, fn func() error) error {
	return ownthread.Run(func() error {
		err := rawfd.Use(ns, func(fd int) error { return os.NewSyscallError("setns", unix.Setns(fd, unix.CLONE_NEWNET)) })
		if err != nil {
			return err
		}
		return fn()
	})
}

// handleIn is inNetns with a handle for the network of the namespace.
func handleIn(ns *os.File, fn func(h *netlink.Handle) error) error {
	return inNetns(ns, func() error { return withHandle(fn) })
}

// sameNetns says whether ns is the namespace of the calling thread.
func sameNetns(ns *os.File) (bool, error) {
	theirs, err := ns.Stat()
	if err != nil {
		return false, err
	}
	ours, err := os.Stat(threadNS)
	if err != nil {
		return false, err
	}
	return os.SameFile(theirs, ours), nil
}

// kindOf is the kind of a kernel's refusal.
func kindOf(err error) pod.Kind {
	for _, k := range []struct {
		kind   pod.Kind
		errnos []unix.Errno
	}{
		{pod.Denied, []unix.Errno{unix.EPERM, unix.EACCES}},
		{pod.Exhausted, []unix.Errno{unix.ENOSPC, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.EXFULL, unix.EUSERS}},
		{pod.Unsupported, []unix.Errno{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOSYS}},
	} {
		for _, errno := range k.errnos {
			if errors.Is(err, errno) {
				return k.kind
			}
		}
	}
	return pod.KindOf(err)
}

// join adds what went wrong on the way back to what went wrong first, in one line and with the
// first's kind.
func join(err, more error) error {
	if err == nil || more == nil {
		return cmp.Or(err, more)
	}
	return pod.Errorf(pod.KindOf(err), "%w; and %w", err, more)
}
