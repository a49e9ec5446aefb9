package netsetup

import (
	"context"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

// AwaitPodLink waits until Setup, which is under way, has made the eth0 of a pod, and returns its
// hardware address and MTU: they are there before addresses and routes are.
func AwaitPodLink(ctx context.Context, ns *os.File) (PodLink, error) {
	if err := fileOK(ns); err != nil {
		return PodLink{}, err
	}
	var h *netlink.Handle
	err := inNetns(ns, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return PodLink{}, pod.Errorf(kindOf(err), "cannot look for the pod's %s: %w", podLink, err)
	}
	defer h.Close()
	for {
		eth, err := h.LinkByName(podLink)
		if err == nil {
			return PodLink{MAC: eth.Attrs().HardwareAddr, MTU: eth.Attrs().MTU}, nil
		}
		if !isNoLink(err) {
			return PodLink{}, pod.Errorf(kindOf(err), "cannot look for the pod's %s: %w", podLink, err)
		}
		select {
		case <-ctx.Done():
			return PodLink{}, pod.Errorf(pod.Unavailable, "cannot wait for the pod's %s: %w", podLink, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}
