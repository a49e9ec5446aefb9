package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A build removes what is older of its kind, and nothing else of the cache.
func TestCachedKeepsOthers(t *testing.T) {
	cache := t.TempDir()
	stay := []string{"vm-out", "vm-guest", "vmstate-0123456789ab", "vm-0123456789abc", "guests"}
	for _, name := range append([]string{"vm-0123456789ab", "vm-0123456789ac.building"}, stay...) {
		if err := os.Mkdir(filepath.Join(cache, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	builds := 0
	for range 2 {
		if err := Cached(filepath.Join(cache, "vm-ba9876543210"), func(building string) error {
			builds++
			return os.Mkdir(building, 0o755)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if builds != 1 {
		t.Errorf("%d builds, not one", builds)
	}
	files, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.Name())
	}
	want := append([]string{"vm-ba9876543210", "vm.lock"}, stay...)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the cache has %v, not %v", got, want)
	}
	if err := Cached(filepath.Join(cache, "vm"), nil); err == nil {
		t.Error("a name without a digest was taken")
	}
}
