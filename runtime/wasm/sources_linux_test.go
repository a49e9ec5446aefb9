package wasm_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/wasm"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// TestForgetImages: machine code goes with the last image that has the module, whoever remembers
// it, and comes again with it.
func TestForgetImages(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	layers, cache := t.TempDir(), t.TempDir()
	image := func(name string) runtime.Image {
		return runtime.Image{Reference: name, Config: runtime.ImageConfig{Entrypoint: []string{"/module.wasm"}}, Rootfs: runtime.Rootfs{Dir: layers, Layers: []string{name}}}
	}
	come := func(l *wasm.Runtime, name string, module []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(layers, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(layers, name, "module.wasm"), module, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := l.PrepareImage(t.Context(), image(name)); err != nil {
			t.Fatal(err)
		}
	}
	forget := func(l *wasm.Runtime, name string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(layers, name)); err != nil {
			t.Fatal(err)
		}
		if err := l.ForgetImages(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	one, other := testwasm.Trap(), testwasm.Function("_start")
	want := func(what string, first, second bool) {
		t.Helper()
		if got := engine.Cached(cache, sha256.Sum256(one)); got != first {
			t.Errorf("%s: code of the first module: %v", what, got)
		}
		if got := engine.Cached(cache, sha256.Sum256(other)); got != second {
			t.Errorf("%s: code of the second module: %v", what, got)
		}
	}
	l := wasm.New(wasm.Config{Program: program, ShimPath: program, Cache: cache})
	if err := l.ForgetImages(t.Context()); err != nil {
		t.Errorf("without a cache: %v", err)
	}
	come(l, "a", one)
	come(l, "a\n\"2\"", one) // not compiled, but found
	come(l, "b", other)
	want("all are there", true, true)
	forget(l, "a")
	want("another image has it", true, true)
	l = wasm.New(wasm.Config{Program: program, ShimPath: program, Cache: cache}) // as after a restart
	forget(l, "b")
	want("no image has the second", true, false)
	forget(l, "a\n\"2\"")
	want("no image has the first", false, false)
	if notes, err := os.ReadDir(filepath.Join(cache, ".sources")); err != nil || len(notes) > 0 {
		t.Errorf("notes are left: %v, %v", notes, err)
	}
	come(l, "b", other)
	forget(l, "none")
	want("the second has come again", false, true)
	// Half a line of a crash spoils no other.
	name := filepath.Join(cache, ".sources", hex.EncodeToString(func() []byte { s := sha256.Sum256(other); return s[:] }()))
	if err := os.WriteFile(name, []byte("\"/half"), 0o600); err != nil {
		t.Fatal(err)
	}
	come(wasm.New(wasm.Config{Program: program, ShimPath: program, Cache: cache}), "b", other)
	forget(l, "none")
	want("after half a line", false, true)
}
