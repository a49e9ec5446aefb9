package netlist

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWhole(t *testing.T) {
	other := errors.New("other")
	for _, tt := range []struct {
		name  string
		fails []error
		calls int
		want  error
	}{
		{"at once", []error{nil}, 1, nil},
		{"interrupted", []error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, 3, nil},
		{"another error", []error{netlink.ErrDumpInterrupted, other, nil}, 2, other},
		{"always interrupted", make([]error, 10), 10, netlink.ErrDumpInterrupted},
	} {
		if tt.name == "always interrupted" {
			for i := range tt.fails {
				tt.fails[i] = netlink.ErrDumpInterrupted
			}
		}
		calls := 0
		all, err := Whole(func() ([]int, error) { calls++; return []int{calls}, tt.fails[calls-1] })
		if calls != tt.calls || !errors.Is(err, tt.want) || len(all) != 1 || all[0] != tt.calls {
			t.Errorf("%s: %d calls give %v, %v", tt.name, calls, all, err)
		}
	}
}
