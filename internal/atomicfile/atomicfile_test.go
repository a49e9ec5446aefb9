package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWrite(t *testing.T) {
	for name, write := range map[string]func(string, []byte, os.FileMode) error{"sync": Write, "no sync": WriteNoSync} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			for _, want := range []string{"one", "two, longer", ""} {
				if err := write(path, []byte(want), 0o640); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || string(got) != want {
					t.Fatalf("read %q, %v; want %q", got, err, want)
				}
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v; want 0640", info.Mode(), err)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(entries) != 1 {
				t.Errorf("%d entries left, %v; want the file alone", len(entries), err)
			}
		})
	}
}

func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("data"), 0o600); err == nil {
		t.Fatal("a directory that is not empty was replaced")
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Errorf("%d entries left, want the directory alone", len(entries))
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := Read(path, 3); !os.IsNotExist(err) {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := Read(path, 3); err != nil || string(data) != "abc" {
		t.Errorf("a file of the limit: %q, %v", data, err)
	}
	if data, err := Read(path, 2); err == nil {
		t.Errorf("a file over the limit: %q", data)
	}
}

func TestSaveJSON(t *testing.T) {
	type record struct{ Name string }
	path := filepath.Join(t.TempDir(), "f")
	var got record
	if err := LoadJSON(path, 100, &got); !os.IsNotExist(err) {
		t.Errorf("a missing file: %v", err)
	}
	if err := SaveJSON(path, record{"a"}); err != nil {
		t.Fatal(err)
	}
	if err := LoadJSON(path, 100, &got); err != nil || got.Name != "a" {
		t.Errorf("read %+v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := LoadJSON(path, 5, &got); !Damaged(err) {
		t.Errorf("a file over the limit: %v", err)
	}
	if err := os.WriteFile(path, []byte(`{"Name":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := LoadJSON(path, 100, &got); !Damaged(err) {
		t.Errorf("half a record: %v", err)
	}
	if err := SaveJSON(path, make(chan int)); err == nil {
		t.Error("a channel was written")
	}
}

// TestReadNoFile checks that nothing but a regular file is read, and that nothing is waited for.
func TestReadNoFile(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"symlink":   func(path string) error { return os.Symlink("/etc/passwd", path) },
		"socket":    func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
		"sparse":    func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			if data, err := Read(path, 1<<20); !Damaged(err) || len(data) > 0 {
				t.Errorf("%d bytes, %v", len(data), err)
			}
		})
	}
}

func TestDamaged(t *testing.T) {
	_, missing := os.Open(filepath.Join(t.TempDir(), "f"))
	for err, want := range map[error]bool{
		nil: false, missing: false, &os.PathError{Op: "read", Path: "f", Err: unix.EIO}: false, fmt.Errorf("open: %w", unix.EMFILE): false,
		json.Unmarshal([]byte("{"), new(any)): true, errors.New("it is another's"): true,
	} {
		if Damaged(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
