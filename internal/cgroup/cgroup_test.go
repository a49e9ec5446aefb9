package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEvent(t *testing.T) {
	dir := t.TempDir()
	if value, err := Event(filepath.Join(dir, "gone"), "frozen"); value != "" || err != nil {
		t.Errorf("a cgroup that is gone: %q, %v", value, err)
	}
	file := filepath.Join(dir, "cgroup.events")
	if err := os.WriteFile(file, []byte("populated 1\nfrozen 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"populated": "1", "frozen": "0"} {
		if value, err := Event(dir, name); value != want || err != nil {
			t.Errorf("%s: %q, %v", name, value, err)
		}
	}
	if value, err := Event(dir, "froz"); err == nil {
		t.Errorf("a value that is not there: %q", value)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if value, err := Event(dir, "frozen"); err == nil {
		t.Errorf("a file that cannot be read: %q", value)
	}
}

func TestWriteToWhatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := SetFrozen(dir, false); err != nil {
		t.Error(err)
	}
	if err := Kill(dir); err != nil {
		t.Error(err)
	}
	// An error of another kind is one.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SetFrozen(file, true); err == nil {
		t.Error("freezing what is no directory succeeded")
	}
}
