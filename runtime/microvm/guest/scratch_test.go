package guest

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDropLayers: what an earlier VM has left of containers goes, emptyDirs stay, and no symlink
// leads out of the scratch disk.
func TestDropLayers(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/kept", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]bool{"directory": false, "symlink": true} {
		t.Run(name, func(t *testing.T) {
			scratch := t.TempDir()
			layer, volume := scratch+"/layers/id/upper", scratch+"/volumes/v"
			if link {
				layer = outside
				if err := os.Symlink(outside, scratch+"/layers"); err != nil {
					t.Fatal(err)
				}
			}
			for _, dir := range []string{layer, volume} {
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if !link {
				if err := os.Symlink(outside, filepath.Join(layer, "link")); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // also when there are none
				if err := dropLayers(scratch); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Lstat(scratch + "/layers"); !os.IsNotExist(err) {
				t.Errorf("the layers are left: %v", err)
			}
			for _, path := range []string{volume, outside + "/kept"} {
				if _, err := os.Stat(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
