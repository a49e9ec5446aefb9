package netsetup

import (
	"bytes"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// hostsHeader begins the file of a pod that has its own network, as the kubelet writes it.
const hostsHeader = `# Kubernetes-managed hosts file.
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
fe00::	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`

// HostsFile is the /etc/hosts of a pod. base is the host's file for a pod on the host's network,
// and nil for others, which get the usual entries. A line with each of podIPs names the pod: fqdn,
// when there is one, before hostname. Aliases come last; those that would not be one line with an
// address and names are left out.
func HostsFile(base []byte, podIPs []netip.Addr, hostname, fqdn string, aliases []corev1.HostAlias) []byte {
	var b bytes.Buffer
	if base == nil {
		b.WriteString(hostsHeader)
	} else {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(base)
		if len(base) > 0 && base[len(base)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	for _, ip := range podIPs {
		hostsLine(&b, ip.String(), []string{fqdn, hostname})
	}
	if len(aliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
	}
	for _, a := range aliases {
		if ip, err := netip.ParseAddr(a.IP); err == nil && ip.Zone() == "" {
			hostsLine(&b, a.IP, a.Hostnames)
		}
	}
	return b.Bytes()
}

func hostsLine(b *bytes.Buffer, ip string, names []string) {
	line := ip
	for _, name := range names {
		if isWord(name) {
			line += "\t" + name
		}
	}
	if line != ip {
		b.WriteString(line + "\n")
	}
}

// isWord says whether s is one field of a line of hosts or resolv.conf and cannot be read as
// anything else.
func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '#' || r == 0x7f || r == 0x85 || r == 0xa0 }) && s[0] != ';'
}
