package pod

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The limits of dnsConfig: Kubernetes', which are more than the resolvers of C libraries read.
const (
	maxNameservers   = 3
	maxSearches      = 32
	maxSearchesBytes = 2048
)

// maxHostAliases bounds /etc/hosts.
const maxHostAliases = 256

func (c *checker) podObject(p *corev1.Pod) {
	s := &p.Spec
	c.spec = s
	path := field.NewPath("spec")
	c.unheard(s, path)
	oneOf(c, path.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	if g := s.TerminationGracePeriodSeconds; g != nil {
		c.between(path.Child("terminationGracePeriodSeconds"), *g, 0, int64(MaxGracePeriod.Seconds()))
	}
	if d := s.ActiveDeadlineSeconds; d != nil {
		c.between(path.Child("activeDeadlineSeconds"), *d, 1, math.MaxInt32)
	}
	if class := s.RuntimeClassName; class != nil {
		oneOf(c, path.Child("runtimeClassName"), *class, ClassContainers, ClassWasm, ClassMicroVM)
	}
	if s.OS != nil && s.OS.Name != corev1.Linux {
		c.refuse(path.Child("os", "name"), "this host runs Linux")
	}
	if s.HostPID && isTrue(s.ShareProcessNamespace) {
		c.refuse(path.Child("shareProcessNamespace"), "hostPID shares the host's process namespace already")
	}
	if s.HostUsers != nil && !*s.HostUsers {
		c.refuse(path.Child("hostUsers"), "user namespaces are not supported")
	}
	c.hostname(p, path)
	c.dns(s, path)
	c.hostAliases(s.HostAliases, path.Child("hostAliases"))
	c.podSecurity(s, path.Child("securityContext"))
	c.podResources(s, path.Child("resources"))
	volumes := c.volumes(s.Volumes, path.Child("volumes"))
	c.containers(s, path, volumes)
	c.class(p)
}

func (c *checker) hostname(p *corev1.Pod, path *field.Path) {
	s := &p.Spec
	for name, value := range map[string]string{"hostname": s.Hostname, "subdomain": s.Subdomain} {
		if value != "" {
			c.all(path.Child(name), value, validation.IsDNS1123Label(value))
		}
	}
	if isTrue(s.SetHostnameAsFQDN) && s.HostNetwork {
		c.refuse(path.Child("setHostnameAsFQDN"), "a pod with hostNetwork has the host's name")
	}
	if _, _, err := Hostname(p); err != nil {
		c.refuse(path.Child("setHostnameAsFQDN"), "the name is longer than the kernel takes")
	}
	if s.HostnameOverride == nil {
		return
	}
	o := path.Child("hostnameOverride")
	if isTrue(s.SetHostnameAsFQDN) {
		c.refuse(o, "cannot be used with setHostnameAsFQDN")
	}
	if s.HostNetwork {
		c.refuse(o, "a pod with hostNetwork has the host's name")
	}
	c.all(o, *s.HostnameOverride, validation.IsDNS1123Subdomain(*s.HostnameOverride))
	if len(*s.HostnameOverride) > maxFQDN {
		c.add(field.TooLong(o, "", maxFQDN))
	}
}

func (c *checker) dns(s *corev1.PodSpec, path *field.Path) {
	oneOf(c, path.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	path = path.Child("dnsConfig")
	config := s.DNSConfig
	if s.DNSPolicy == corev1.DNSNone && (config == nil || len(config.Nameservers) == 0) {
		c.required(path.Child("nameservers"), "dnsPolicy None needs at least one")
	}
	if config == nil {
		return
	}
	for i, server := range config.Nameservers[:c.first(path.Child("nameservers"), len(config.Nameservers), maxNameservers)] {
		c.address(path.Child("nameservers").Index(i), server)
	}
	total := 0
	for i, search := range config.Searches[:c.first(path.Child("searches"), len(config.Searches), maxSearches)] {
		total += len(search) + 1
		if search != "." {
			c.all(path.Child("searches").Index(i), search, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(search, ".")))
		}
	}
	if total > maxSearchesBytes+1 {
		c.invalid(path.Child("searches"), total, fmt.Sprintf("must have at most %d characters together", maxSearchesBytes))
	}
	for i, option := range config.Options {
		at := path.Child("options").Index(i)
		if option.Name == "" {
			c.required(at.Child("name"), "")
		}
		// They become words of a line of resolv.conf.
		c.word(at.Child("name"), option.Name)
		if option.Value != nil {
			c.word(at.Child("value"), *option.Value)
		}
	}
}

// word refuses what would end a word or a line of a configuration file.
func (c *checker) word(path *field.Path, value string) {
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' || r == ';' }) {
		c.invalid(path, value, "must be printable ASCII without blanks, # and ;")
	}
}

// address checks an IP address without a zone.
func (c *checker) address(path *field.Path, value string) {
	if a, err := netip.ParseAddr(value); err != nil || a.Zone() != "" || a.Is4In6() {
		c.invalid(path, value, "must be an IPv4 or IPv6 address")
	}
}

func (c *checker) hostAliases(list []corev1.HostAlias, path *field.Path) {
	for i, alias := range list[:c.first(path, len(list), maxHostAliases)] {
		c.address(path.Index(i).Child("ip"), alias.IP)
		names := path.Index(i).Child("hostnames")
		if len(alias.Hostnames) == 0 {
			c.required(names, "an address without a name says nothing")
		}
		for j, name := range alias.Hostnames {
			c.all(names.Index(j), name, validation.IsDNS1123Subdomain(name))
		}
	}
}

func (c *checker) containers(s *corev1.PodSpec, path *field.Path, volumes map[string]bool) {
	if len(s.Containers) == 0 {
		c.required(path.Child("containers"), "a pod has at least one container")
	}
	c.first(path.Child("containers"), len(s.Containers)+len(s.InitContainers), MaxContainers)
	names := make(map[string]bool)
	for i := range min(len(s.InitContainers), MaxContainers) {
		cc := containerChecker{checker: c, c: &s.InitContainers[i], path: path.Child("initContainers").Index(i), init: true, volumes: volumes, names: names}
		cc.check()
	}
	for i := range min(len(s.Containers), MaxContainers) {
		cc := containerChecker{checker: c, c: &s.Containers[i], path: path.Child("containers").Index(i), volumes: volumes, names: names}
		cc.check()
	}
}
