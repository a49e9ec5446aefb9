package netsetup

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"k8s.io/apimachinery/pkg/types"
)

const (
	stateVersion = 1
	stateMax     = 16 << 20 // bytes
)

// state is the content of the state file.
type state struct {
	Version    int
	IPv4, IPv6 netip.Prefix // the subnets that the indexes belong to
	Pods       []saved
}

type saved struct {
	UID   types.UID
	Name  string
	Index int
	Ports []Port `json:",omitempty"`
}

// readState reads the file; a file that is not there is an empty state. A file that cannot be
// understood is renamed to NAME.corrupt, and warning says so.
func readState(path string) (s state, warning string, err error) {
	err = atomicfile.LoadJSON(path, stateMax, &s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return state{}, "", nil
	case err != nil && !atomicfile.Damaged(err):
		return state{}, "", pod.Errorf(kindOf(err), "cannot read the network state: %w", err)
	case err == nil && s.Version != stateVersion:
		err = fmt.Errorf("it has version %d, not %d", s.Version, stateVersion)
	}
	if err == nil {
		return s, "", nil
	}
	aside := path + ".corrupt"
	if rerr := os.Rename(path, aside); rerr != nil {
		return state{}, "", pod.Errorf(kindOf(rerr), "cannot set aside the network state: %w", rerr)
	}
	return state{}, fmt.Sprintf("the network state %s cannot be read and is now %s: %v", path, aside, err), nil
}

// write replaces the file, or removes it when there is nothing to remember.
func (s state) write(path string) error {
	if len(s.Pods) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pod.Errorf(kindOf(err), "cannot remove the network state: %w", err)
		}
		return nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = atomicfile.SaveJSON(path, s)
	}
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot write the network state: %w", err)
	}
	return nil
}
