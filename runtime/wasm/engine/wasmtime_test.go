package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/tests/testwasm"
)

func TestWasmtimeArgv(t *testing.T) {
	p := &wasmtimeProgram{engine: &wasmtimeEngine{path: "/usr/bin/wasmtime"}, file: "/tmp/x.wasm", options: LoadOptions{MemoryBytes: 1 << 20}}
	got, err := p.argv(Config{
		Args: []string{"tool", "-v", "--", "x"}, Env: []string{"A=1", "B=2", "A=3"}, Entry: "run",
		Dirs: []Dir{{Host: "/srv", Guest: "/data", Writable: true}}, Listeners: []Listener{{Port: 80}, {Host: "127.0.0.1", Port: 81}},
	})
	want := []string{
		"/usr/bin/wasmtime", "run", "-W", "max-memory-size=1048576", "--invoke", "run", "--dir", "/srv::/data", "-S", "preview2=n", "-S", "tcplisten=[::]:80",
		"-S", "tcplisten=127.0.0.1:81", "--env", "A=3", "--env", "B=2", "--argv0", "tool", "--", "/tmp/x.wasm", "-v", "--", "x",
	}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v, error %v; want %v", got, err, want)
	}
	for name, config := range map[string]Config{"read-only": {Dirs: []Dir{{Host: "/", Guest: "/"}}}, "name": {Dirs: []Dir{{Host: "/a::b", Guest: "/", Writable: true}}}} {
		if _, err := p.argv(config); errkind.KindOf(err) != errkind.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWasmtimeMissing(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "wasmtime"), "false", "uname"} {
		if _, err := NewWasmtime(t.Context(), path); errkind.KindOf(err) != errkind.Unsupported {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestWasmtimeForms(t *testing.T) {
	e := &wasmtimeEngine{path: "/usr/bin/wasmtime"}
	for _, module := range [][]byte{testwasm.Trap(), testwasm.Component()} {
		p, err := e.Load(t.Context(), module, LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		dir := p.(*wasmtimeProgram).dir
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	if _, err := e.Load(t.Context(), []byte("#!/bin/sh\n"), LoadOptions{}); errkind.KindOf(err) != errkind.Invalid {
		t.Error(err)
	}
}

// TestWasmtime runs where wasmtime is installed: in no Debian release.
func TestWasmtime(t *testing.T) {
	if _, err := exec.LookPath("wasmtime"); err != nil {
		t.Skip("wasmtime is not installed (try: https://wasmtime.dev)")
	}
	e, err := NewWasmtime(t.Context(), "wasmtime")
	if err != nil {
		t.Fatal(err)
	}
	p, err := e.Load(t.Context(), testwasm.Guest(t), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out strings.Builder
	code, err := p.Run(t.Context(), Config{Args: []string{"guest", "args", "--", "env", "--", "exit", "42"}, Env: []string{"COLOUR=blue"}, Stdout: &out})
	if code != 42 || err != nil || !strings.Contains(out.String(), "guest|args|--") || !strings.Contains(out.String(), "COLOUR=blue\n") {
		t.Errorf("code %d, %v, %q", code, err, &out)
	}
}
