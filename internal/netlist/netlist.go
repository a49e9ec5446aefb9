// Package netlist lists what the kernel knows of the network.
package netlist

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Whole repeats a listing that a change of the listed things has interrupted: some of them may be
// missing in it (NLM_F_DUMP_INTR, netlink(7)).
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
