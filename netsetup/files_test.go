package netsetup

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

var podIPs = []netip.Addr{netip.MustParseAddr("10.212.0.2"), netip.MustParseAddr("fd6d:6167:696b::2")}

func TestHostsFile(t *testing.T) {
	for _, tt := range []struct {
		name           string
		want           string
		base           []byte
		ips            []netip.Addr
		hostname, fqdn string
		aliases        []corev1.HostAlias
	}{
		{name: "own network", ips: podIPs, hostname: "web", want: hostsHeader + "10.212.0.2\tweb\nfd6d:6167:696b::2\tweb\n"},
		{name: "fqdn", ips: podIPs[:1], hostname: "web", fqdn: "web.sub.default.svc", want: hostsHeader + "10.212.0.2\tweb.sub.default.svc\tweb\n"},
		{name: "aliases", ips: podIPs[:1], hostname: "web",
			aliases: []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"a", "b.example"}}, {IP: "::7", Hostnames: []string{"c"}}},
			want:    hostsHeader + "10.212.0.2\tweb\n\n# Entries added by HostAliases.\n192.0.2.7\ta\tb.example\n::7\tc\n"},
		{name: "host network", base: []byte("127.0.0.1 localhost\n192.0.2.1 host"), aliases: []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"a"}}},
			want: "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n192.0.2.1 host\n\n# Entries added by HostAliases.\n192.0.2.7\ta\n"},
		{name: "host network with an empty file", base: []byte{}, want: "# Kubernetes-managed hosts file (host network).\n"},
		{name: "hostile aliases", aliases: []corev1.HostAlias{{IP: "192.0.2.7\n192.0.2.8", Hostnames: []string{"a"}}, {IP: "192.0.2.9", Hostnames: []string{"b\n1.1.1.1 c", "d"}}, {IP: "192.0.2.10"}},
			want: hostsHeader + "\n# Entries added by HostAliases.\n192.0.2.9\td\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := HostsFile(tt.base, tt.ips, tt.hostname, tt.fqdn, tt.aliases)
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func numbered(format string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

func TestResolvConf(t *testing.T) {
	const host = "# by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53 # two\nsearch old.example\nsearch example.com corp.example\noptions ndots:2 edns0\noptions timeout:1\nsortlist 10.0.0.0\n"
	const hostOut = "search example.com corp.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:2 edns0 timeout:1\n"
	five := "5"
	config := &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.54", "192.0.2.53"}, Searches: []string{"pod.example", "example.com"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &five}, {Name: "rotate"}}}
	for _, tt := range []struct {
		name   string
		want   string
		policy corev1.DNSPolicy
		config *corev1.PodDNSConfig
		host   string
	}{
		{name: "default", policy: corev1.DNSDefault, host: host, want: hostOut},
		{name: "cluster first", policy: corev1.DNSClusterFirst, host: host, want: hostOut},
		{name: "cluster first with host net", policy: corev1.DNSClusterFirstWithHostNet, host: host, want: hostOut},
		{name: "no policy", host: host, want: hostOut},
		{name: "none", policy: corev1.DNSNone, host: host, want: ""},
		{name: "none with config", policy: corev1.DNSNone, config: config, host: host,
			want: "search pod.example example.com\nnameserver 192.0.2.54\nnameserver 192.0.2.53\noptions ndots:5 rotate\n"},
		{name: "merged", policy: corev1.DNSDefault, config: config, host: host,
			want: "search example.com corp.example pod.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver 192.0.2.54\noptions ndots:5 edns0 timeout:1 rotate\n"},
		{name: "limits", policy: corev1.DNSNone, config: &corev1.PodDNSConfig{Nameservers: numbered("192.0.2.%d", 5), Searches: numbered("d%d.example", 40)},
			want: "search " + strings.Join(numbered("d%d.example", 32), " ") + "\nnameserver 192.0.2.0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n"},
		{name: "long searches", policy: corev1.DNSNone, config: &corev1.PodDNSConfig{Searches: []string{strings.Repeat("a", 2000), strings.Repeat("b", 47), "c"}},
			want: "search " + strings.Repeat("a", 2000) + " " + strings.Repeat("b", 47) + "\n"},
		{name: "domain", host: "domain example.com\n", want: "search example.com\n"},
		{name: "empty search", host: "search example.com\nsearch\n", want: ""},
		{name: "hostile", policy: corev1.DNSNone, config: &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1\nnameserver 2.2.2.2", "no"}, Searches: []string{"a\nb", "ok"},
			Options: []corev1.PodDNSConfigOption{{Name: "x\ny"}, {Name: ""}}}, want: "search ok\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, string(ResolvConf(tt.policy, tt.config, []byte(tt.host)))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOnLoopback(t *testing.T) {
	for in, want := range map[string]bool{
		"":                          false,
		"nameserver 127.0.0.53\n":   true,
		"nameserver ::1":            true,
		"nameserver 192.0.2.1\n":    false,
		"nameserver nonsense\n":     false,
		"# nameserver 127.0.0.53\n": false,
		"nameserver 127.0.0.53\nnameserver 192.0.2.1\n":          false,
		"search a\nnameserver 127.0.0.1\nnameserver 127.0.0.2\n": true,
	} {
		if got := OnLoopback([]byte(in)); got != want {
			t.Errorf("OnLoopback(%q) = %v", in, got)
		}
	}
}

// FuzzHostsFile: whatever a manifest says, the aliases are lines with an address and names.
func FuzzHostsFile(f *testing.F) {
	f.Add("web", "web.example", "192.0.2.1", "a", "b")
	f.Add("", "", "fe80::1%eth0", "a\n1.1.1.1 b", "#")
	f.Add("a b", "\x00", "::ffff:1.2.3.4", "\u0085", "\u00a0")
	f.Fuzz(func(t *testing.T, hostname, fqdn, ip, one, two string) {
		got := HostsFile(nil, podIPs, hostname, fqdn, []corev1.HostAlias{{IP: ip, Hostnames: []string{one, two}}})
		rest, ok := bytes.CutPrefix(got, []byte(hostsHeader))
		if !ok {
			t.Fatalf("the header is gone: %q", got)
		}
		allowed := map[string]bool{hostname: true, fqdn: true, one: true, two: true}
		lines := 0
		for line := range bytes.Lines(rest) {
			if line[0] == '#' || line[0] == '\n' {
				continue
			}
			lines++
			fields := strings.Fields(string(line))
			if _, err := netip.ParseAddr(fields[0]); err != nil || len(fields) < 2 {
				t.Fatalf("line %q of %q", line, got)
			}
			for _, name := range fields[1:] {
				if !allowed[name] {
					t.Fatalf("name %q of %q", name, got)
				}
			}
		}
		if lines > 3 {
			t.Fatalf("%d lines: %q", lines, got)
		}
	})
}

// FuzzResolvConf: the result keeps the limits, and reading it and writing it again changes nothing.
func FuzzResolvConf(f *testing.F) {
	f.Add("ClusterFirst", "nameserver 127.0.0.53\nsearch a b\noptions ndots:1\n", "1.1.1.1", "c", "ndots", "5")
	f.Add("None", "", "::1", "a\nb", "x:y", ":")
	f.Add("Default", "options #\nsearch ;\nnameserver\nnameserver fe80::1%eth0\n", "\n", " ", "a b", "\x85")
	f.Fuzz(func(t *testing.T, policy, host, ns, search, option, value string) {
		config := &corev1.PodDNSConfig{Nameservers: []string{ns}, Searches: []string{search}, Options: []corev1.PodDNSConfigOption{{Name: option, Value: &value}}}
		got := ResolvConf(corev1.DNSPolicy(policy), config, []byte(host))
		r := parseResolver(got)
		if len(r.nameservers) > maxNameservers || len(r.searches) > maxSearches || len(strings.Join(r.searches, " ")) > maxSearchLen {
			t.Fatalf("beyond the limits: %q", got)
		}
		if again := ResolvConf(corev1.DNSDefault, nil, got); !bytes.Equal(got, again) {
			t.Fatalf("%q became %q", got, again)
		}
		if bytes.Count(got, []byte("\n")) > 2+maxNameservers {
			t.Fatalf("too many lines: %q", got)
		}
	})
}
