package pod

import (
	"cmp"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const maxPort = 65535

func (k *containerChecker) ports() {
	names := make(map[string]bool)
	seen := make(map[corev1.ContainerPort]bool)
	for i, port := range k.c.Ports {
		at := k.path.Child("ports").Index(i)
		if port.Name != "" {
			k.all(at.Child("name"), port.Name, validation.IsValidPortName(port.Name))
			if names[port.Name] {
				k.add(field.Duplicate(at.Child("name"), clip(port.Name)))
			}
			names[port.Name] = true
		}
		k.between(at.Child("containerPort"), int64(port.ContainerPort), 1, maxPort)
		if port.HostPort != 0 {
			k.between(at.Child("hostPort"), int64(port.HostPort), 1, maxPort)
			if k.spec.HostNetwork && port.HostPort != port.ContainerPort {
				k.invalid(at.Child("hostPort"), port.HostPort, "must be equal to containerPort in a pod with hostNetwork")
			}
		}
		if port.HostIP != "" {
			k.address(at.Child("hostIP"), port.HostIP)
		}
		oneOf(k.checker, at.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		same := corev1.ContainerPort{ContainerPort: port.ContainerPort, Protocol: port.Protocol, HostPort: port.HostPort, HostIP: port.HostIP}
		if seen[same] && port.HostPort == 0 {
			k.warn(at, "is there twice: the container has this port already")
		}
		seen[same] = true
	}
}

// hostPort is a port of the host, whatever the address.
type hostPort struct {
	protocol corev1.Protocol
	port     int32
}

// portUses is who has a port on which address; the zero address means all of them.
type portUses struct {
	first string
	by    map[netip.Addr]string
}

// hostPorts refuses a port of the host that is asked for twice, by the pods of one manifest or
// within one of them. A pod that another manifest made is no concern of this function.
func (v *manifestValidator) hostPorts(c *checker, p *corev1.Pod) {
	for container, path := range ContainerPaths(&p.Spec) {
		for i, port := range container.Ports {
			if port.HostPort != 0 {
				at := path.Child("ports").Index(i).Child("hostPort")
				v.hostPort(c, at, port, fmt.Sprintf("%s/%s, %s", p.Namespace, p.Name, at))
			}
		}
	}
}

func (v *manifestValidator) hostPort(c *checker, at *field.Path, port corev1.ContainerPort, by string) {
	address, err := netip.ParseAddr(port.HostIP)
	if err != nil || address.IsUnspecified() {
		address = netip.Addr{}
	}
	key := hostPort{port.Protocol, port.HostPort}
	uses := v.ports[key]
	if uses == nil {
		uses = &portUses{by: make(map[netip.Addr]string)}
		v.ports[key] = uses
	}
	other := cmp.Or(uses.by[netip.Addr{}], uses.by[address])
	if !address.IsValid() {
		other = cmp.Or(other, uses.first)
	}
	if other != "" {
		c.invalid(at, port.HostPort, "is taken by "+other)
		return
	}
	uses.first, uses.by[address] = cmp.Or(uses.first, by), by
}
