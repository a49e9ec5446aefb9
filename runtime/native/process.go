package native

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
	"github.com/magikrun/magikpod/pod"
)

// maxUserFile bounds /etc/passwd and /etc/group of a container.
const maxUserFile = 1 << 20

// process is what the OCI runtime is to run: the container's first process with the command, the environment, the directory and the user of the
// exec. first is that process's PID.
func (x *execution) process(bundle string, first int) (*specs.Process, error) {
	var spec struct{ Process *specs.Process }
	if err := loadRecord(filepath.Join(bundle, "config.json"), &spec); err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot read its bundle: %w", err)
	}
	p := spec.Process
	if p == nil {
		return nil, pod.Errorf(pod.Internal, "cannot read its bundle: there is no process in it")
	}
	if p.OOMScoreAdj != nil {
		x.score = *p.OOMScoreAdj
	}
	p.Args, p.Terminal, p.ConsoleSize = x.p.Args, x.p.TTY, nil
	if x.p.WorkingDir != "" {
		if !filepath.IsAbs(x.p.WorkingDir) {
			return nil, pod.Errorf(pod.Invalid, "the working directory %q is not absolute", x.p.WorkingDir)
		}
		p.Cwd = filepath.Clean(x.p.WorkingDir)
	}
	home := ""
	if x.p.User != "" {
		resolved, err := execUser(first, x.p.User)
		if err != nil {
			return nil, err
		}
		p.User, home = resolved.user, resolved.home
	}
	env, err := mergeEnv(p.Env, x.p.Env, home, x.p.TTY)
	p.Env = env
	return p, err
}

// mergeEnv adds KEY=VALUE entries to an environment; the last of a name wins. home, when not empty, replaces HOME unless the entries have it; a
// terminal gets a TERM.
func mergeEnv(env, more []string, home string, tty bool) ([]string, error) {
	env = slices.Clone(env)
	set := func(entry, name string) {
		i := slices.IndexFunc(env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		if i >= 0 {
			env[i] = entry
		} else {
			env = append(env, entry)
		}
	}
	if home != "" {
		set("HOME="+home, "HOME")
	}
	if tty && !slices.ContainsFunc(env, func(old string) bool { return strings.HasPrefix(old, "TERM=") }) {
		env = append(env, "TERM=xterm")
	}
	for _, entry := range more {
		name, _, ok := strings.Cut(entry, "=")
		if !ok || name == "" || strings.ContainsRune(entry, 0) {
			return nil, pod.Errorf(pod.Invalid, "the environment variable %q is not of the form NAME=VALUE", entry)
		}
		set(entry, name)
	}
	return env, nil
}

type resolvedUser struct {
	user specs.User
	home string
}

// execUser resolves USER[:GROUP] with the files of a running container, whose first process is pid.
func execUser(pid int, spec string) (resolvedUser, error) {
	root, err := safepath.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return resolvedUser{}, pod.Errorf(pod.Conflict, "it has just ended")
	}
	defer root.Close()
	passwd, err := readBelow(root, "etc/passwd")
	if err != nil {
		return resolvedUser{}, err
	}
	group, err := readBelow(root, "etc/group")
	if err != nil {
		return resolvedUser{}, err
	}
	found, err := user.GetExecUser(spec, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return resolvedUser{}, pod.Errorf(pod.Invalid, "cannot use the user %q: %v", spec, err)
	}
	groups := []uint32{uint32(found.Gid)}
	for _, id := range found.Sgids {
		if !slices.Contains(groups, uint32(id)) {
			groups = append(groups, uint32(id))
		}
	}
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > 1<<31-1 {
			return resolvedUser{}, pod.Errorf(pod.Invalid, "cannot use the user %q: the container's files give it the ID %d", spec, id)
		}
	}
	return resolvedUser{user: specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid), AdditionalGids: groups}, home: firstNonEmpty(found.Home, "/")}, nil
}

// readBelow reads a regular file of a container, out of which no link of the container's leads. A missing one is empty.
func readBelow(root *os.File, path string) ([]byte, error) {
	data, err := safepath.ReadFile(root, path, maxUserFile)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case errors.Is(err, unix.EFBIG):
		return nil, pod.Errorf(pod.Invalid, "cannot read its /%s: it has more than %d bytes", path, maxUserFile)
	case err != nil:
		return nil, pod.Errorf(pod.Invalid, "cannot read its /%s: %w", path, err)
	}
	return data, nil
}
