package netsetup

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// The limits that resolvers have and Kubernetes documents.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchLen   = 2048 // bytes of all search domains with a space between
)

// resolver is the content of a resolv.conf.
type resolver struct{ nameservers, searches, options []string }

// ResolvConf is the /etc/resolv.conf of a pod: host is the file that the pod would have by Default.
// There is no cluster and no cluster DNS, so ClusterFirst and ClusterFirstWithHostNet are Default,
// as the kubelet does without clusterDNS; None begins with nothing. config is merged in: its
// nameservers and searches follow those that are there, without repetitions, its options replace
// those of the same name. What is beyond the limits (3 nameservers, 32 search domains of 2048
// bytes) is cut off.
//
// A pod with its own network cannot reach a resolver on the host's loopback: see [OnLoopback].
func ResolvConf(policy corev1.DNSPolicy, config *corev1.PodDNSConfig, host []byte) []byte {
	var r resolver
	if policy != corev1.DNSNone {
		r = parseResolver(host)
	}
	if config != nil {
		r.nameservers = append(r.nameservers, config.Nameservers...)
		r.searches = append(r.searches, config.Searches...)
		for _, o := range config.Options {
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			if isWord(option) {
				r.setOption(option)
			}
		}
	}
	return r.format()
}

// OnLoopback says whether each nameserver of a host's resolv.conf is one of the host's loopback, as
// with systemd-resolved. Pods with their own network then need what that server asks:
// /run/systemd/resolve/resolv.conf.
func OnLoopback(host []byte) bool {
	r := parseResolver(host)
	return len(r.nameservers) > 0 && !slices.ContainsFunc(r.nameservers, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err != nil || !a.Unmap().IsLoopback()
	})
}

// parseResolver reads a resolv.conf as the C library does: the last search line counts, options add
// up, the rest is skipped.
func parseResolver(data []byte) (r resolver) {
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			if len(fields) == 1 && (fields[0] == "search" || fields[0] == "domain") {
				r.searches = nil
			}
			continue
		}
		values := fields[1:]
		if i := slices.IndexFunc(values, func(v string) bool { return v[0] == '#' || v[0] == ';' }); i >= 0 {
			values = values[:i]
		}
		switch fields[0] {
		case "nameserver":
			r.nameservers = append(r.nameservers, values[:min(1, len(values))]...)
		case "search":
			r.searches = values
		case "domain":
			r.searches = values[:min(1, len(values))]
		case "options":
			for _, o := range values {
				r.setOption(o)
			}
		}
	}
	return r
}

// setOption adds an option or replaces the one of that name.
func (r *resolver) setOption(option string) {
	name, _, _ := strings.Cut(option, ":")
	for i, o := range r.options {
		if n, _, _ := strings.Cut(o, ":"); n == name {
			r.options[i] = option
			return
		}
	}
	r.options = append(r.options, option)
}

func (r resolver) format() []byte {
	var b bytes.Buffer
	if s := limit(r.searches, maxSearches, maxSearchLen, isWord); len(s) > 0 {
		b.WriteString("search " + strings.Join(s, " ") + "\n")
	}
	for _, n := range limit(r.nameservers, maxNameservers, maxSearchLen, isAddr) {
		b.WriteString("nameserver " + n + "\n")
	}
	if len(r.options) > 0 {
		b.WriteString("options " + strings.Join(r.options, " ") + "\n")
	}
	return b.Bytes()
}

// limit returns the first n of those that are ok, each once, as long as they fit size bytes with a
// space between.
func limit(values []string, n, size int, ok func(string) bool) (out []string) {
	for _, v := range values {
		if !ok(v) || slices.Contains(out, v) {
			continue
		}
		if size -= len(v) + min(1, len(out)); len(out) == n || size < 0 {
			break
		}
		out = append(out, v)
	}
	return out
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil && isWord(s)
}
