package oci

import (
	"path"
	"strings"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/crun"
)

// defaultPath is $PATH when neither image nor manifest has one, as in all CRI runtimes.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command is the command line: command replaces the image's entrypoint and its cmd, args replace
// only cmd, $(VAR) is replaced by the manifest's variables (Kubernetes, "Define a Command and
// Arguments for a Container").
func Command(in Input) ([]string, error) {
	vars := make(map[string]string, len(in.Env))
	for _, e := range in.Env {
		vars[e.Name] = e.Value
	}
	lookup := func(name string) (string, bool) {
		value, ok := vars[name]
		return value, ok
	}
	total := 0
	expandAll := func(list []string) []string {
		var out []string
		for _, s := range list {
			if total > pod.MaxExecBytes {
				return out
			}
			s = pod.Expand(s, lookup)
			total += len(s) + 1
			out = append(out, s)
		}
		return out
	}
	var argv []string
	switch command, args := expandAll(in.Container.Command), expandAll(in.Container.Args); {
	case len(command) > 0:
		argv = append(command, args...)
	case len(args) > 0:
		argv = append(append(argv, in.Image.Config.Entrypoint...), args...)
	default:
		argv = append(append(argv, in.Image.Config.Entrypoint...), in.Image.Config.Cmd...)
	}
	if total > pod.MaxExecBytes {
		return nil, pod.Errorf(pod.Invalid, "cannot run container %q: its arguments have more than %d bytes", in.Container.Name, pod.MaxExecBytes)
	}
	if len(argv) == 0 || argv[0] == "" {
		return nil, pod.Errorf(pod.Invalid, "cannot run container %q: no command specified, neither in the manifest nor in image %s", in.Container.Name, in.Image.Reference)
	}
	for _, arg := range argv {
		if strings.ContainsRune(arg, 0) {
			return nil, pod.Errorf(pod.Invalid, "cannot run container %q: an argument contains a NUL byte", in.Container.Name)
		}
	}
	return argv, nil
}

// env is the environment: the image's, HOSTNAME, the manifest's, then PATH and HOME if they are
// still missing. Later values replace earlier ones in place, so that every name occurs once.
func env(in Input, home string) ([]string, error) {
	var list crun.Env
	for _, entry := range in.Image.Config.Env {
		if !list.Add(entry) {
			return nil, pod.Errorf(pod.Invalid, "cannot run container %q: the environment of image %s has the malformed entry %q", in.Container.Name, in.Image.Reference, entry)
		}
	}
	if in.Hostname != "" {
		list.Set("HOSTNAME", in.Hostname)
	}
	for _, e := range in.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.ContainsRune(e.Value, 0) {
			return nil, pod.Errorf(pod.Invalid, "cannot run container %q: environment variable %q cannot be passed to a process", in.Container.Name, e.Name)
		}
		list.Set(e.Name, e.Value)
	}
	list.SetDefault("PATH", defaultPath)
	list.SetDefault("HOME", home)
	return list.List(), nil
}

// workingDir is the manifest's, else the image's, else the root. It is always absolute.
func workingDir(in Input) (string, error) {
	dir := in.Container.WorkingDir
	if dir == "" {
		dir = in.Image.Config.WorkingDir
	}
	if strings.ContainsRune(dir, 0) {
		return "", pod.Errorf(pod.Invalid, "cannot run container %q: the working directory %q contains a NUL byte", in.Container.Name, dir)
	}
	return path.Clean("/" + dir), nil
}
