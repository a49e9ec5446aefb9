package crun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLastLogError(t *testing.T) {
	for log, want := range map[string]string{
		"": "",
		"{\"msg\":\"first\",\"level\":\"error\",\"time\":\"t\"}\n{\"msg\":\"second\",\"level\":\"error\"}\n":                           "second",
		"{\"level\":\"error\",\"msg\":\"real\"}\n{\"level\":\"warning\",\"msg\":\"later\"}\nnoise\n{\"level\":\"error\",\"msg\":\"\"}": "real",
		`{"timestamp":"t","level":"ERROR","fields":{"message":"youki's"},"target":"x"}`:                                                "youki's",
		`{"level":"error","msg":"cut`: "",
		`[1]`:                         "",
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := LastLogError(path); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
	if got := LastLogError(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("%q", got)
	}
}

// TestLogError: what is written is what is read.
func TestLogError(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, text := range []string{"plain", "with \"quotes\",\nlines and \xff bytes"} {
		if err := LogError(f, text); err != nil {
			t.Fatal(err)
		}
		if got, want := LastLogError(f.Name()), strings.ToValidUTF8(text, "\ufffd"); got != want {
			t.Errorf("%q is read as %q, expected %q", text, got, want)
		}
	}
}

// TestReadEnd: what is no regular file is not read, nor waited for.
func TestReadEnd(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": "6789", "link": "", "fifo": "", "none": "", ".": ""} {
		if got := string(ReadEnd(filepath.Join(dir, name), 4)); got != want {
			t.Errorf("%s: %q, expected %q", name, got, want)
		}
	}
}
