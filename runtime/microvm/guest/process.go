package guest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// maxUserFile bounds /etc/passwd and /etc/group of a container.
const maxUserFile = 1 << 20

// execProcess is what crun is to run: the container's first process, whose PID is first, with the command, environment, directory and user of an exec.
func (c *container) execProcess(r *wire.Exec, first int) (*specs.Process, error) {
	p := *c.process
	p.Args, p.Terminal, p.ConsoleSize = r.Args, r.TTY, nil
	if r.Cwd != "" {
		p.Cwd = filepath.Clean(r.Cwd)
	}
	home := ""
	if r.User != "" {
		var err error
		if p.User, home, err = execUser(first, c.alive, r.User); err != nil {
			return nil, err
		}
	}
	p.Env = mergeEnv(p.Env, r.Env, home, r.TTY)
	return &p, nil
}

// mergeEnv adds KEY=VALUE entries to an environment; the last of a name wins. home, when not empty, replaces HOME unless the entries have it; a terminal gets a
// TERM.
func mergeEnv(env, more []string, home string, tty bool) []string {
	env = slices.Clone(env)
	set := func(entry string) {
		name, _, _ := strings.Cut(entry, "=")
		i := slices.IndexFunc(env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		if i < 0 {
			env = append(env, entry)
		} else {
			env[i] = entry
		}
	}
	if home != "" {
		set("HOME=" + home)
	}
	if tty && !slices.ContainsFunc(env, func(old string) bool { return strings.HasPrefix(old, "TERM=") }) {
		env = append(env, "TERM=xterm")
	}
	for _, entry := range more {
		set(entry)
	}
	return env
}

// execUser resolves USER[:GROUP] with the files of a running container, whose first process is pid for as long as it is alive.
func execUser(pid int, alive func() bool, spec string) (specs.User, string, error) {
	root, err := safepath.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return specs.User{}, "", wire.Errorf(wire.CodeContainerNotRunning, "it has just ended")
	}
	defer root.Close()
	if !alive() { // and the directory may be another process's
		return specs.User{}, "", wire.Errorf(wire.CodeContainerNotRunning, "it has just ended")
	}
	passwd, err := readBelow(root, "etc/passwd")
	if err != nil {
		return specs.User{}, "", err
	}
	group, err := readBelow(root, "etc/group")
	if err != nil {
		return specs.User{}, "", err
	}
	found, err := user.GetExecUser(spec, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, "", notUsable("cannot use the user %q: %v", spec, err)
	}
	groups := []uint32{uint32(found.Gid)}
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > 1<<31-1 {
			return specs.User{}, "", notUsable("cannot use the user %q: the container's files give it the ID %d", spec, id)
		}
	}
	for _, id := range found.Sgids {
		if !slices.Contains(groups, uint32(id)) {
			groups = append(groups, uint32(id))
		}
	}
	home := found.Home
	if home == "" {
		home = "/"
	}
	return specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid), AdditionalGids: groups}, home, nil
}

// notUsable is an exec that cannot be run as it was asked for.
func notUsable(format string, args ...any) error {
	e := wire.Errorf(wire.CodeExecFailed, format, args...)
	e.Exit = 126
	return e
}

// readBelow reads a regular file of a container, out of which no link of the container's leads. A missing one is empty.
func readBelow(root *os.File, path string) ([]byte, error) {
	data, err := safepath.ReadFile(root, path, maxUserFile)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, notUsable("cannot read its /%s: %v", path, err)
	}
	return data, nil
}
