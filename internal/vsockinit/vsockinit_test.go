package vsockinit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLoadModules: a directory without modules has none, and what is no module is reported by its name.
func TestLoadModules(t *testing.T) {
	dir := t.TempDir()
	if err := LoadModules(dir); err != nil {
		t.Error(err)
	}
	path := filepath.Join(dir, "0-none.ko")
	if err := os.WriteFile(path, []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := LoadModules(dir); err == nil || !strings.HasPrefix(err.Error(), "cannot load the module "+path+": ") {
		t.Errorf("loading what is no module returned %v, want an error that names the file", err)
	}
}
