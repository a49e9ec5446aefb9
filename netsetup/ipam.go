package netsetup

import (
	"math/big"
	"net/netip"
)

// firstIndex is the first index of a pod: 0 is the network, 1 the bridge.
const firstIndex = 2

// ipam hands out indexes. Index i stands for the address subnet+i, in IPv4 and in IPv6 alike, for a
// link's name and for its hardware address. An index that was given back is the last to be given
// out again, so that nobody's cache of the old pod meets the new one. It is pure; [Manager] guards
// it.
type ipam struct {
	last int // the highest index
	next int // where the search begins
	used map[int]use
}

// use is what an index is used for.
type use int

const (
	byPod      use = iota + 1
	quarantine     // its pod is gone, its link may not be
)

func newIPAM(v4, v6 netip.Prefix) *ipam {
	bits := 32 - v4.Bits()
	last := 1<<bits - 2 // without the broadcast address
	if free := 128 - v6.Bits(); free < 31 {
		last = min(last, 1<<free-1)
	}
	return &ipam{last: last, next: firstIndex, used: map[int]use{}}
}

// take returns an index that is free, or false when there is none.
func (a *ipam) take() (int, bool) {
	if len(a.used) > a.last-firstIndex {
		return 0, false
	}
	for i := a.next; ; i++ {
		if i > a.last {
			i = firstIndex
		}
		if a.used[i] == 0 {
			a.used[i] = byPod
			a.next = i + 1
			return i, true
		}
	}
}

// claim takes index i; false when it is taken or out of range.
func (a *ipam) claim(i int, u use) bool {
	if i < firstIndex || i > a.last || a.used[i] != 0 {
		return false
	}
	a.used[i] = u
	a.next = max(a.next, i+1)
	return true
}

// retire puts a pod's index into quarantine.
func (a *ipam) retire(i int) {
	if a.used[i] == byPod {
		a.used[i] = quarantine
	}
}

// release frees index i. It may be free already.
func (a *ipam) release(i int) { delete(a.used, i) }

// addrAt is the i-th address of a subnet.
func addrAt(p netip.Prefix, i int) netip.Addr {
	base := p.Addr().AsSlice()
	sum := new(big.Int).Add(new(big.Int).SetBytes(base), big.NewInt(int64(i)))
	addr, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, len(base))))
	return addr
}
