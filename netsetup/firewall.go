package netsetup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/magikrun/magikpod/internal/firstbytes"
	"github.com/magikrun/magikpod/pod"
)

const (
	nftTimeout   = 30 * time.Second
	nftWaitDelay = 2 * time.Second
	nftErrorMax  = 300 // bytes of nft's message that an error carries
)

// tableName is the name of the nftables table, of family inet, that is wholly ours.
const tableName = "magikpod"

// firewall is our nftables table. The ports are elements of maps; what changes with a pod are these.
type firewall struct {
	cfg *Config
	nft string // path of the program

	mu sync.Mutex // held while nft runs: callers that come meanwhile find their change done with the next run
	// applied are the elements that the kernel has; nil when the table is not known to be there.
	applied elements
	// ports are the netlink ports of the last runs of nft: the kernel gives a process' first socket
	// its PID.
	ports [64]uint32
	runs  int
}

// own says whether a transaction by the netlink port was ours. It waits for the one that runs.
func (f *firewall) own(port uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.ports[:], port)
}

// elements are the contents of the maps: the key of an element (map, address, protocol, port) to
// where it leads.
type elements map[element]string

type element struct{ set, key string }

// add adds what port p of the pod with the addresses needs.
func (e elements) add(p Port, v4, v6 netip.Addr) {
	set, key := "ports", fmt.Sprintf("%s . %d", strings.ToLower(string(p.Protocol)), p.HostPort)
	if !p.any() {
		set, key = "addrs", p.HostIP.String()+" . "+key
	}
	if p.is4() {
		e[element{set + "4", key}] = fmt.Sprintf("%s . %d", v4, p.Port)
	}
	if p.is6() && v6.IsValid() {
		e[element{set + "6", key}] = fmt.Sprintf("%s . %d", v6, p.Port)
	}
}

// sync makes the table what want says: the elements in it when nothing but these differ, the whole
// table when it is not known to be there, or is not as it should be. Each is one transaction. When
// nothing differs nothing is run.
func (f *firewall) sync(ctx context.Context, want func() elements) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	elems := want()
	if f.applied != nil {
		script := changes(f.applied, elems)
		if script == "" {
			return nil
		}
		if f.run(ctx, script) == nil {
			f.applied = elems
			return nil
		}
		f.applied = nil // somebody has changed the table: lay it anew
	}
	if err := f.run(ctx, f.table(elems)); err != nil {
		return pod.Errorf(kindOf(err), "cannot set up table %s: %w", tableName, err)
	}
	f.applied = elems
	return nil
}

// rebuild lays the whole table, whatever there is.
func (f *firewall) rebuild(ctx context.Context, want func() elements) error {
	f.mu.Lock()
	f.applied = nil
	f.mu.Unlock()
	return f.sync(ctx, want)
}

// remove deletes the table. It may be gone.
func (f *firewall) remove(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = nil
	if err := f.run(ctx, "table inet "+tableName+"\ndelete table inet "+tableName+"\n"); err != nil {
		return pod.Errorf(kindOf(err), "cannot remove table %s: %w", tableName, err)
	}
	return nil
}

// changes is the script that turns the elements old into those of want.
func changes(old, want elements) string {
	var b strings.Builder
	for _, e := range sorted(old) {
		if want[e] != old[e] {
			fmt.Fprintf(&b, "delete element inet %s %s { %s }\n", tableName, e.set, e.key)
		}
	}
	for _, e := range sorted(want) {
		if want[e] != old[e] {
			fmt.Fprintf(&b, "add element inet %s %s { %s : %s }\n", tableName, e.set, e.key, want[e])
		}
	}
	return b.String()
}

func sorted(e elements) []element {
	return slices.SortedFunc(maps.Keys(e), func(a, b element) int {
		return strings.Compare(a.set+" "+a.key, b.set+" "+b.key)
	})
}

// table is the script that replaces the table by ours with the elements.
func (f *firewall) table(e elements) string {
	var b strings.Builder
	t := strings.NewReplacer("TABLE", tableName, "BRIDGE", f.cfg.Bridge, "SUBNET4", f.cfg.IPv4.String(), "SUBNET6", f.cfg.IPv6.String())
	t.WriteString(&b, ruleset)
	b.WriteString(changes(nil, e))
	return b.String()
}

// ruleset is the table without elements. Accepting in it would not overrule another table's drop,
// therefore it accepts nothing.
//
// The ports of an address come before those of all addresses. What reaches a pod by its published
// port from the pod's own subnet has to come back the same way, and what comes from the host's
// loopback has to be able to come back at all: both get the bridge's address. Others keep theirs,
// so that pods see who calls. The guard keeps pods from the host's 127.0.0.1, which route_localnet
// on the bridge would open to them, and from ::1, to which a packet in the bridge might still go.
// The last chain keeps other hosts from the ports of pods that are not published; the host itself
// and pods do not pass there.
const ruleset = `table inet TABLE
delete table inet TABLE
table inet TABLE {
	map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
	map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
	map addrs4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
	map addrs6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
	chain published {
		dnat ip to ip daddr . meta l4proto . th dport map @addrs4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @addrs6
		fib daddr type != local return
		dnat ip to meta l4proto . th dport map @ports4
		dnat ip6 to meta l4proto . th dport map @ports6
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		jump published
	}
	chain output {
		type nat hook output priority -100; policy accept;
		jump published
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		oifname "BRIDGE" ct status dnat ip saddr { 127.0.0.0/8, SUBNET4 } masquerade
		oifname "BRIDGE" ct status dnat ip6 saddr { ::1, SUBNET6 } masquerade
		oifname != "BRIDGE" ip saddr SUBNET4 ip daddr != SUBNET4 masquerade fully-random
		oifname != "BRIDGE" ip6 saddr SUBNET6 ip6 daddr != SUBNET6 masquerade fully-random
	}
	chain guard {
		type filter hook prerouting priority -300; policy accept;
		iifname "BRIDGE" ip daddr 127.0.0.0/8 drop
		iifname "BRIDGE" ip saddr 127.0.0.0/8 drop
		iifname "BRIDGE" ip6 daddr ::1 drop
		iifname "BRIDGE" ip6 saddr ::1 drop
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		oifname "BRIDGE" iifname != "BRIDGE" ct status dnat accept
		oifname "BRIDGE" iifname != "BRIDGE" ct state new drop
	}
}
`

// run gives nft one transaction.
func (f *firewall) run(ctx context.Context, script string) error {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.nft, "-f", "-")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = strings.NewReader(script)
	stderr := &firstbytes.Writer{Max: nftErrorMax}
	cmd.Stderr = stderr
	cmd.WaitDelay = nftWaitDelay
	err := cmd.Start()
	if err == nil {
		f.ports[f.runs%len(f.ports)] = uint32(cmd.Process.Pid)
		f.runs++
		err = cmd.Wait()
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return pod.Errorf(pod.Unavailable, "nft was stopped: %w", context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound) || isNotExist(err):
		return pod.Errorf(pod.Unsupported, "there is no program %s: install the package nftables", f.nft)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
	return pod.Errorf(pod.Internal, "nft: %w: %s", err, line)
}
