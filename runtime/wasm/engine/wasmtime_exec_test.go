package engine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/internal/errkind"
)

func TestExecWasmtime(t *testing.T) {
	config := Config{Args: []string{"/app.wasm", "-v"}, Env: []string{"A=1", "LD_PRELOAD=/guest/x.so", "HOME=/guest", "A=secret"}, Dirs: []Dir{{Host: "/guest", Guest: "/", Writable: true}}}
	argv, env, err := ExecWasmtime("/usr/bin/wasmtime", "/module.wasm", LoadOptions{MemoryBytes: 1 << 20}, config, true)
	want := []string{
		"/usr/bin/wasmtime", "run", "-C", "cache=n", "-W", "max-memory-size=1048576", "-S", "inherit-network=y", "--dir", "/guest::/",
		"--env", "A", "--env", "HOME=/guest", "--env", "LD_PRELOAD=/guest/x.so", "--argv0", "/app.wasm", "--", "/module.wasm", "-v",
	}
	slices.Sort(env)
	if err != nil || !equalButEnvOrder(argv, want) || !cmp.Equal(env, []string{"A=secret"}) {
		t.Errorf("%v, %v, error %v; want %v", argv, env, err, want)
	}
}

// equalButEnvOrder compares command lines: variables have no order.
func equalButEnvOrder(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return cmp.Equal(a, b)
}

// TestFiles asks about programs that every Debian has.
func TestFiles(t *testing.T) {
	files, err := Files(t.Context(), "ls")
	text := strings.Join(files, "\n")
	if err != nil || len(files) < 3 || !strings.HasSuffix(files[0], "/ls") || !strings.Contains(text, "/libc.so.6") || !strings.Contains(files[1], "/ld") {
		t.Errorf("ls needs the files %q, %v, want ls itself, its loader and libc", files, err)
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil || !filepath.IsAbs(file) {
			t.Errorf("%s: %v", file, err)
		}
	}
	script := filepath.Join(t.TempDir(), "wasmtime")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{script, "/no/such/program", "no-such-program"} {
		if _, err := Files(t.Context(), bad); errkind.KindOf(err) != errkind.Unsupported {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
