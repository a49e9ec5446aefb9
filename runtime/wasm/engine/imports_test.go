package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// TestCompileRefuses: a module that could never be instantiated is refused when it is compiled,
// before that takes any time, and makes no entry.
func TestCompileRefuses(t *testing.T) {
	header := "\x00asm\x01\x00\x00\x00"
	types := "\x01\x04\x01\x60\x00\x00" // () -> ()
	slow := testwasm.Blocks(100_000)
	imports := func(text string) []byte { return append([]byte(header+types+text), slow[len(header)+len(types):]...) }
	for name, tt := range map[string]struct {
		module []byte
		text   string
	}{
		"a function of another module":    {testwasm.Import("env", "abort"), "abort of env"},
		"a function that WASI has not":    {testwasm.Import("wasi_snapshot_preview1", "fd_fly"), "fd_fly"},
		"a function of another type":      {testwasm.Import("wasi_snapshot_preview1", "fd_write"), "signature mismatch"},
		"a memory":                        {[]byte(header + "\x02\x0a\x01\x03env\x01m\x02\x00\x01"), "env"},
		"a table, and the rest is slow":   {imports("\x02\x0b\x01\x03env\x01t\x01\x70\x00\x01"), "env"},
		"a global, after another section": {[]byte(header + "\x00\x02\x01x" + "\x02\x0a\x01\x03env\x01g\x03\x7f\x00"), "env"},
	} {
		cache := t.TempDir()
		err := New(cache).Compile(t.Context(), tt.module)
		if errkind.KindOf(err) != errkind.Unsupported || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (%s)", name, err, errkind.KindOf(err))
		}
		if made, _ := filepath.Glob(cache + "/*"); len(made) > 0 {
			t.Errorf("%s: it left %v", name, made)
		}
	}
	for name, module := range map[string][]byte{"Go": testwasm.Guest(t), "C": testwasm.Preview1(t), "none": testwasm.Trap()} {
		if err := checkImports(t.Context(), module); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheck: what can be known of an entry is known before the guest runs.
func TestCheck(t *testing.T) {
	p, err := New(cacheDir).Load(t.Context(), testwasm.Function("other"), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Check("other"); err != nil {
		t.Error(err)
	}
	for _, entry := range []string{"", "missing", "memory"} {
		if err := p.Check(entry); errkind.KindOf(err) != errkind.Unsupported {
			t.Errorf("%q: %v", entry, err)
		}
	}
}

// TestUnusableCache: where machine code cannot be kept a module runs all the same; to compile it
// for the cache alone is an error.
func TestUnusableCache(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(dir, "full")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=8k"); err != nil {
		t.Skip(err) // needs root
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	readOnly := filepath.Join(dir, "ro")
	if err := errors.Join(os.Mkdir(readOnly, 0o700), syscall.Mount("tmpfs", readOnly, "tmpfs", syscall.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(readOnly, syscall.MNT_DETACH) })
	for _, cache := range []string{file + "/cache", readOnly + "/cache", small + "/cache"} {
		p, err := New(cache).Load(t.Context(), testwasm.Small(t), LoadOptions{})
		if err != nil {
			t.Errorf("%s: %v", cache, err)
			continue
		}
		_ = p.Close()
		if err := New(cache).Compile(t.Context(), testwasm.Small(t)); errkind.KindOf(err) != errkind.Internal {
			t.Errorf("%s: Compile: %v (%s)", cache, err, errkind.KindOf(err))
		}
	}
	if left, _ := filepath.Glob(small + "/cache/*/*"); len(left) > 0 {
		t.Errorf("a full disk has left %v", left)
	}
}
