package engine

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/testwasm"
)

// entryFiles are the files of machine code of the only entry of a cache.
func entryFiles(t *testing.T, cache string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(cache, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != sumsName {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in the cache: %v", err)
	}
	return files
}

func TestCacheIsUsedAndRepaired(t *testing.T) {
	cache := t.TempDir()
	e, module := New(cache), testwasm.Trap()
	if err := e.Compile(t.Context(), module); err != nil {
		t.Fatal(err)
	}
	dir := e.(*wazeroEngine).entryDir(sha256.Sum256(module), LoadOptions{})
	if !intact(dir) {
		t.Fatal("there is no intact entry")
	}
	before, err := os.Stat(entryFiles(t, cache)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Compile(t.Context(), module); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(entryFiles(t, cache)[0])
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("an intact entry was made anew: %v", err)
	}
	for name, damage := range map[string]func(file string) error{
		"truncated": func(file string) error { return os.Truncate(file, 3) },
		"changed": func(file string) error {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 0xff
			return os.WriteFile(file, data, 0o600)
		},
		"gone":       os.Remove,
		"more":       func(file string) error { return os.WriteFile(file+"x", nil, 0o600) },
		"no sums":    func(string) error { return os.Remove(filepath.Join(dir, sumsName)) },
		"empty sums": func(string) error { return os.WriteFile(filepath.Join(dir, sumsName), []byte("{}"), 0o600) },
		"bad sums":   func(string) error { return os.WriteFile(filepath.Join(dir, sumsName), []byte("{"), 0o600) },
		"a link": func(file string) error {
			if err := os.Rename(file, file+".away"); err != nil {
				return err
			}
			return os.Symlink(file+".away", file)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(entryFiles(t, cache)[0]); err != nil {
				t.Fatal(err)
			}
			if intact(dir) {
				t.Error("the damage is not seen")
			}
			p, err := e.Load(t.Context(), module, LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if code, err := p.Run(t.Context(), Config{Args: []string{"x"}}); code != TrapCode {
				t.Errorf("it ends with %d, %v", code, err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if !intact(dir) {
				t.Error("the entry was not repaired")
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".new-*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestCacheIsShared(t *testing.T) {
	cache, module := t.TempDir(), testwasm.Trap()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := New(cache).Compile(t.Context(), module); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if !intact(New(cache).(*wazeroEngine).entryDir(sha256.Sum256(module), LoadOptions{})) {
		t.Error("there is no intact entry")
	}
}

func TestPrune(t *testing.T) {
	cache := t.TempDir()
	e := New(cache).(*wazeroEngine)
	dirs := map[string]string{}
	for name, module := range map[string][]byte{"kept": testwasm.Trap(), "gone": testwasm.Function("_start")} {
		if err := e.Compile(t.Context(), module); err != nil {
			t.Fatal(err)
		}
		dirs[name] = e.entryDir(sha256.Sum256(module), LoadOptions{})
	}
	kind := filepath.Dir(dirs["kept"])
	dirs["other version"], dirs["others'"] = filepath.Join(cache, "wazero-0.1.0-linux-amd64"), filepath.Join(cache, ".sources")
	dirs["abandoned"], dirs["being made"] = filepath.Join(kind, ".new-1"), filepath.Join(kind, ".new-2")
	for _, name := range []string{"other version", "others'", "abandoned", "being made"} {
		if err := os.Mkdir(dirs[name], 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * abandoned)
	if err := os.Chtimes(dirs["abandoned"], old, old); err != nil {
		t.Fatal(err)
	}
	if err := Prune(cache, func(digest string) bool { return digest == filepath.Base(dirs["kept"]) }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"kept": true, "gone": false, "other version": false, "others'": true, "abandoned": false, "being made": true} {
		if _, err := os.Stat(dirs[name]); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !intact(dirs["kept"]) {
		t.Error("the entry that is kept is not intact")
	}
	if err := Prune(filepath.Join(cache, "missing"), nil); err != nil {
		t.Error(err)
	}
}
