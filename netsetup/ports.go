package netsetup

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/magikrun/magikpod/pod"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Port is one published port: what arrives for HostPort at HostIP goes to the pod's Port.
type Port struct {
	// HostIP is the host's address; the zero value is all addresses of both families, 0.0.0.0 and
	// :: all of one family.
	HostIP   netip.Addr `json:"hostIP,omitzero"`
	HostPort uint16     `json:"hostPort"`
	Port     uint16     `json:"port"`
	// Protocol is TCP (also when empty), UDP or SCTP.
	Protocol corev1.Protocol `json:"protocol,omitempty"`
}

// PodNetwork is what a pod wants of the network.
type PodNetwork struct {
	UID types.UID
	// Name is for people: errors name the pod by it.
	Name  string
	Ports []Port
}

// NetworkOf is what p wants: its name is NAMESPACE/NAME, its ports are the hostPorts of its
// containers, sidecars included. It does not apply to pods on the host's network. Errors:
// [pod.Invalid] for a hostIP that is none.
func NetworkOf(p *corev1.Pod) (PodNetwork, error) {
	n := PodNetwork{UID: p.UID, Name: p.Namespace + "/" + p.Name}
	for c := range pod.AllContainers(&p.Spec) {
		for _, cp := range c.Ports {
			if cp.HostPort == 0 {
				continue
			}
			port := Port{HostPort: uint16(cp.HostPort), Port: uint16(cp.ContainerPort), Protocol: cp.Protocol}
			if cp.HostIP != "" {
				ip, err := netip.ParseAddr(cp.HostIP)
				if err != nil {
					return n, pod.Errorf(pod.Invalid, "cannot publish port %d: hostIP %q is no address", cp.HostPort, cp.HostIP)
				}
				port.HostIP = ip
			}
			n.Ports = append(n.Ports, port)
		}
	}
	return n, nil
}

// normal checks the ports and gives them one form, sorted and without repetitions.
func normal(ports []Port) ([]Port, error) {
	out := make([]Port, 0, len(ports))
	for _, p := range ports {
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		p.HostIP = p.HostIP.Unmap().WithZone("")
		if p.HostPort == 0 || p.Port == 0 || p.proto() == 0 {
			return nil, pod.Errorf(pod.Invalid, "cannot publish port %s to %d: it needs two ports and TCP, UDP or SCTP", p, p.Port)
		}
		for _, q := range out {
			if p != q && p.overlaps(q) {
				return nil, pod.Errorf(pod.Conflict, "cannot publish port %s: the pod publishes %s as well", p, q)
			}
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(p, q Port) int { return cmp.Or(cmp.Compare(p.String(), q.String()), cmp.Compare(p.Port, q.Port)) })
	return out, nil
}

// String is ADDRESS:PORT/PROTOCOL, with * for all addresses.
func (p Port) String() string {
	if p.HostIP.IsValid() {
		return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
	}
	return fmt.Sprintf("*:%d/%s", p.HostPort, p.Protocol)
}

// proto is the number of the protocol; 0 when it is unknown.
func (p Port) proto() int {
	switch p.Protocol {
	case corev1.ProtocolTCP:
		return unix.IPPROTO_TCP
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return 0
}

// is4 and is6 say whether the port is published in the family.
func (p Port) is4() bool { return !p.HostIP.IsValid() || p.HostIP.Is4() }
func (p Port) is6() bool { return !p.HostIP.IsValid() || p.HostIP.Is6() }

// any says whether the port is published on all addresses (of a family).
func (p Port) any() bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }

// overlaps says whether a packet could be meant for both, as for two sockets.
func (p Port) overlaps(q Port) bool {
	if p.HostPort != q.HostPort || p.Protocol != q.Protocol {
		return false
	}
	family := p.is4() && q.is4() || p.is6() && q.is6()
	return family && (p.any() || q.any() || p.HostIP == q.HostIP)
}
