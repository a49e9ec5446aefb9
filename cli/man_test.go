package cli

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/magikrun/magikpod/internal/golden"
)

// manDir holds the manual pages of all programs.
const manDir = "../docs/man"

// TestManPages: the manual pages of magikpodctl are what its commands and flags say. `make man`
// writes them.
func TestManPages(t *testing.T) {
	fresh := t.TempDir()
	root := newRoot(newApp(os.Stdout, os.Stderr))
	root.InitDefaultCompletionCmd()
	root.DisableAutoGenTag = true // else each page would carry today's date
	eachCommand(root, func(c *cobra.Command) { c.InitDefaultHelpFlag() })
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: "magikpod", Manual: "magikpod"}
	if err := doc.GenManTree(root, header, fresh); err != nil {
		t.Fatal(err)
	}
	want := readPages(t, fresh)
	if golden.Updating() {
		for name := range readPages(t, manDir) {
			if err := os.Remove(filepath.Join(manDir, name)); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range want {
			golden.Write(t, filepath.Join(manDir, name), []byte(text))
		}
	}
	if diff := cmp.Diff(want, readPages(t, manDir)); diff != "" {
		t.Errorf("the manual pages are not up to date (make man): -want +got\n%s", diff)
	}
}

func eachCommand(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, do)
	}
}

// readPages returns the pages of magikpodctl in dir, by file name.
func readPages(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "magikpodctl*.1"))
	if err != nil {
		t.Fatal(err)
	}
	pages := make(map[string]string)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(file)] = string(text)
	}
	return pages
}

// TestEveryCommandIsExplained: a command says in a line what it does, and the ones that people
// start with show an example.
func TestEveryCommandIsExplained(t *testing.T) {
	root := newRoot(newApp(os.Stdout, os.Stderr))
	eachCommand(root, func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no short description", c.CommandPath())
		}
	})
	for _, name := range []string{"run", "list", "get", "logs", "exec", "stop", "delete", "wait", "validate"} {
		c, _, err := root.Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		if c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
}
