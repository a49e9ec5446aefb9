package netsetup

import (
	"net/netip"
	"testing"
)

func TestAddrAt(t *testing.T) {
	for _, tt := range []struct {
		want, subnet string
		index        int
	}{
		{"10.212.0.1", "10.212.0.0/16", 1},
		{"10.212.1.0", "10.212.0.0/16", 256},
		{"10.212.255.254", "10.212.0.0/16", 65534},
		{"fd6d:6167:696b::1", "fd6d:6167:696b::/64", 1},
		{"fd6d:6167:696b::1:0", "fd6d:6167:696b::/64", 65536},
		{"192.0.2.255", "192.0.2.248/29", 7},
	} {
		if got := addrAt(netip.MustParsePrefix(tt.subnet), tt.index); got.String() != tt.want {
			t.Errorf("address %d of %s is %s, want %s", tt.index, tt.subnet, got, tt.want)
		}
	}
}

func TestIPAM(t *testing.T) {
	a := newIPAM(netip.MustParsePrefix("192.0.2.0/29"), netip.MustParsePrefix(DefaultIPv6))
	take := func(want int) {
		t.Helper()
		if got, ok := a.take(); got != want || ok != (want != 0) {
			t.Fatalf("took %d, %v; want %d", got, ok, want)
		}
	}
	take(2)
	take(3)
	a.release(2)
	take(4) // the free index that was used last comes last
	if !a.claim(5, byPod) || a.claim(5, byPod) || a.claim(1, byPod) || a.claim(7, byPod) {
		t.Fatal("claim takes what is free and in range, once")
	}
	take(6)
	a.retire(3)
	take(2)
	take(0) // 3 is in quarantine
	a.release(3)
	take(3)
	take(0)
	if small := newIPAM(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/124")); small.last != 15 {
		t.Errorf("the last index of a /124 is %d, want 15", small.last)
	}
}

// FuzzIPAM plays operations against a plain set: no index is given out twice, none out of range,
// and one is found while there is one.
func FuzzIPAM(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 2, 1, 3, 2, 0, 0})
	f.Add([]byte{4, 9, 0, 0, 1, 2, 2, 2, 0, 8, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		subnet := netip.MustParsePrefix("192.0.2.16/28")
		a := newIPAM(subnet, netip.MustParsePrefix(DefaultIPv6))
		used := map[int]bool{}
		for i, op := range ops {
			index := int(op >> 3)
			switch op % 4 {
			case 0:
				got, ok := a.take()
				if ok == (len(used) == 13) || ok && (used[got] || got < 2 || got > 14 || !subnet.Contains(addrAt(subnet, got))) {
					t.Fatalf("operation %d: took %d, %v with %v", i, got, ok, used)
				}
				if ok {
					used[got] = true
				}
			case 1:
				a.retire(index)
			case 2:
				a.release(index)
				delete(used, index)
			case 3:
				if a.claim(index, byPod) != (!used[index] && index >= 2 && index <= 14) {
					t.Fatalf("operation %d: claim of %d with %v", i, index, used)
				}
				if index >= 2 && index <= 14 {
					used[index] = true
				}
			}
		}
	})
}
