package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

// TestShellWithoutTerminal: a shell whose standard input is no terminal runs the commands that come
// there, ends with them, and its exit status is magikhost's.
func TestShellWithoutTerminal(t *testing.T) {
	if err := host.Check(); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct {
		name, commands string
		code           int
		out            string
	}{
		{"empty", "", 0, ""},
		{"commands", "echo one; cat <<X\ntwo\nX\nexit 3\necho three\n", 3, "one\ntwo\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "in"), []byte(c.commands), 0o600); err != nil {
				t.Fatal(err)
			}
			in, err := os.Open(filepath.Join(dir, "in"))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := os.Create(filepath.Join(dir, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			oldIn, oldOut := os.Stdin, os.Stdout
			os.Stdin, os.Stdout = in, out
			defer func() { os.Stdin, os.Stdout = oldIn, oldOut }()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			code, err := run(ctx, []string{"shell"})
			if err != nil || code != c.code {
				t.Errorf("status %d, %v, want %d", code, err, c.code)
			}
			if _, err := out.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(out); err != nil || string(got) != c.out {
				t.Errorf("it has printed %q, %v, want %q", got, err, c.out)
			}
		})
	}
}
