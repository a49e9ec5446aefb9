package pod

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxHostname is what a label of DNS holds, in bytes; maxFQDN is the longest name that
// sethostname(2) takes.
const (
	maxHostname = 63
	maxFQDN     = 64
)

// clusterDomain is what Kubernetes clusters are called unless an administrator says otherwise.
const clusterDomain = "cluster.local"

// Hostname returns what the pod calls itself, as the kubelet does it: hostnameOverride, else
// hostname, else the pod's name, cut to 63 bytes. With a subdomain, fqdn is
// hostname.subdomain.NAMESPACE.svc.cluster.local, else "". With setHostnameAsFQDN the hostname is
// the fqdn, if there is one.
//
// It does not apply to hostNetwork: such a pod has the host's name.
//
// Invalid: setHostnameAsFQDN makes a name of more than 64 bytes.
func Hostname(p *corev1.Pod) (hostname, fqdn string, err error) {
	if o := p.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, "", nil
	}
	hostname = p.Spec.Hostname
	if hostname == "" {
		hostname = p.Name
		if len(hostname) > maxHostname {
			hostname = strings.TrimRight(hostname[:maxHostname], "-.")
		}
	}
	if p.Spec.Subdomain == "" {
		return hostname, "", nil
	}
	fqdn = strings.Join([]string{hostname, p.Spec.Subdomain, p.Namespace, "svc", clusterDomain}, ".")
	if isTrue(p.Spec.SetHostnameAsFQDN) {
		if len(fqdn) > maxFQDN {
			return "", "", Errorf(Invalid, "cannot use the hostname %s: setHostnameAsFQDN makes it longer than %d characters", fqdn, maxFQDN)
		}
		hostname = fqdn
	}
	return hostname, fqdn, nil
}
