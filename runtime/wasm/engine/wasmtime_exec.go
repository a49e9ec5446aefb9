package engine

import (
	"context"
	"debug/elf"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/magikrun/magikpod/internal/errkind"
)

// Files returns the path of an installed wasmtime, without symbolic links, and after it those of
// all files that it needs to start: its loader and its libraries. command is a path, or a name in
// $PATH. Unsupported: there is none.
func Files(ctx context.Context, command string) ([]string, error) {
	found, err := exec.LookPath(command)
	if err == nil {
		found, err = filepath.EvalSymlinks(found)
	}
	if err != nil {
		return nil, errkind.Errorf(errkind.Unsupported, "cannot use %s: %w (see https://wasmtime.dev)", command, err)
	}
	loader, err := loaderOf(found)
	if err != nil {
		return nil, errkind.Errorf(errkind.Unsupported, "cannot use %s: %w", found, err)
	}
	if loader == "" {
		return []string{found}, nil
	}
	// The loaders of glibc and musl list what they would load, without running any of it.
	cmd := exec.CommandContext(ctx, loader, "--list", found)
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return nil, errkind.Errorf(errkind.Unsupported, "cannot use %s: %s cannot list the libraries it needs: %w", found, loader, err)
	}
	files := []string{found, loader}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) { // "libc.so.6 => /lib/libc.so.6 (0x0)", "/lib64/ld.so (0x0)", "linux-vdso.so.1 (0x0)"
			if filepath.IsAbs(word) && word != loader {
				files = append(files, word)
			}
		}
	}
	return files, nil
}

// loaderOf is the path of a program's loader; empty: it is static.
func loaderOf(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		data := make([]byte, min(p.Filesz, 4096))
		if _, err := p.ReadAt(data, 0); err != nil {
			return "", err
		}
		loader := strings.TrimRight(string(data), "\x00")
		if !filepath.IsAbs(loader) {
			return "", errors.New("the path of its loader is not absolute")
		}
		return loader, nil
	}
	return "", nil
}

// ExecWasmtime is the command line by which a jailed process becomes wasmtime, and its environment.
// The only directory of config is the guest's root. network says that the guest may use the sockets
// of the process's network namespace.
//
// The values of variables do not show on the command line, which all of the host can read: the
// guest inherits them. Those that the process itself would take notice of are the exception.
func ExecWasmtime(program, module string, o LoadOptions, config Config, network bool) (argv, env []string, err error) {
	p := &wasmtimeProgram{file: module}
	argv = []string{program, "run", "-C", "cache=n"} // a configuration file is the guest's to write
	if o.MemoryBytes > 0 {
		argv = append(argv, "-W", "max-memory-size="+strconv.FormatInt(o.MemoryBytes, 10))
	}
	if network {
		argv = append(argv, "-S", "inherit-network=y")
	}
	for _, d := range config.Dirs {
		argv = append(argv, "--dir", d.Host+"::"+d.Guest)
	}
	all, err := lastOfEach(config.Env)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range all {
		name, _, _ := strings.Cut(e, "=")
		if heeded(name) {
			argv = append(argv, "--env", e)
			continue
		}
		argv, env = append(argv, "--env", name), append(env, e)
	}
	return append(argv, p.command(config)...), env, nil
}

// heeded says whether a variable may change what the loader, the C library, Rust's library or
// wasmtime do.
func heeded(name string) bool {
	for _, prefix := range []string{"LD_", "GLIBC_", "MALLOC_", "RUST_", "RAYON_", "WASMTIME_", "XDG_", "LC_", "GCONV_", "RES_", "GETCONF_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	switch name {
	case "HOME", "TMPDIR", "LANG", "LANGUAGE", "LOCPATH", "NLSPATH", "HOSTALIASES", "LOCALDOMAIN", "TZ", "TZDIR":
		return true
	}
	return false
}
