package crun

import (
	"bytes"
	"cmp"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/safepath"
)

// maxUserFile bounds /etc/passwd and /etc/group of a container.
const maxUserFile = 1 << 20

// Exec is what differs from the container's first process.
type Exec struct {
	Args []string
	Env  []string // NAME=VALUE, beside that of the first process
	Dir  string   // absolute; empty: that of the first process
	User string   // USER[:GROUP]; empty: that of the first process
	TTY  bool
}

// Process is what the OCI runtime is to run. first is the container's first process, whose PID is
// pid for as long as it is alive. Invalid: it cannot be run as it was asked for; Conflict: the
// container has just ended.
func Process(first specs.Process, pid int, alive func() bool, x Exec) (*specs.Process, error) {
	p := first
	p.Args, p.Terminal, p.ConsoleSize = x.Args, x.TTY, nil
	if x.Dir != "" {
		if !filepath.IsAbs(x.Dir) {
			return nil, errkind.Errorf(errkind.Invalid, "the working directory %q is not absolute", x.Dir)
		}
		p.Cwd = filepath.Clean(x.Dir)
	}
	home := ""
	var err error
	if x.User != "" {
		if p.User, home, err = lookup(pid, alive, x.User); err != nil {
			return nil, err
		}
	}
	p.Env, err = mergeEnv(p.Env, x.Env, home, x.TTY)
	return &p, err
}

// mergeEnv adds KEY=VALUE entries to an environment; the last of a name wins. home, when not empty,
// replaces HOME unless the entries have it; a terminal gets a TERM.
func mergeEnv(env, more []string, home string, tty bool) ([]string, error) {
	var merged Env
	for _, entry := range env {
		merged.Add(entry)
	}
	if home != "" {
		merged.Set("HOME", home)
	}
	if tty {
		merged.SetDefault("TERM", "xterm")
	}
	for _, entry := range more {
		if !merged.Add(entry) {
			return nil, errkind.Errorf(errkind.Invalid, "the environment variable %q is not of the form NAME=VALUE", entry)
		}
	}
	return merged.List(), nil
}

// lookup resolves USER[:GROUP] with the files of a running container.
func lookup(pid int, alive func() bool, spec string) (u specs.User, home string, err error) {
	root, err := safepath.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return u, "", errkind.Errorf(errkind.Conflict, "it has just ended")
	}
	defer root.Close()
	if !alive() { // and the directory may be another process's
		return u, "", errkind.Errorf(errkind.Conflict, "it has just ended")
	}
	passwd, err := readBelow(root, "etc/passwd")
	if err != nil {
		return u, "", err
	}
	group, err := readBelow(root, "etc/group")
	if err != nil {
		return u, "", err
	}
	found, err := user.GetExecUser(spec, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return u, "", errkind.Errorf(errkind.Invalid, "cannot use the user %q: %v", spec, err)
	}
	u.AdditionalGids = []uint32{uint32(found.Gid)}
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > math.MaxInt32 {
			return specs.User{}, "", errkind.Errorf(errkind.Invalid, "cannot use the user %q: the container's files give it the ID %d", spec, id)
		}
	}
	for _, id := range found.Sgids {
		if !slices.Contains(u.AdditionalGids, uint32(id)) {
			u.AdditionalGids = append(u.AdditionalGids, uint32(id))
		}
	}
	u.UID, u.GID = uint32(found.Uid), uint32(found.Gid)
	return u, cmp.Or(found.Home, "/"), nil
}

// readBelow reads a regular file of a container, out of which no link of the container's leads. A
// missing one is empty.
func readBelow(root *os.File, path string) ([]byte, error) {
	data, err := safepath.ReadFile(root, path, maxUserFile)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case errors.Is(err, unix.EFBIG):
		return nil, errkind.Errorf(errkind.Invalid, "cannot read its /%s: it has more than %d bytes", path, maxUserFile)
	case err != nil:
		return nil, errkind.Errorf(errkind.Invalid, "cannot read its /%s: %w", path, err)
	}
	return data, nil
}
