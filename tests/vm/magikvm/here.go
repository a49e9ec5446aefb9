package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/magikrun/magikpod/tests/vm"
)

// sources are the files of the tree that git knows or would add.
func sources(ctx context.Context, tree string) ([]vm.File, error) {
	cmd := exec.CommandContext(ctx, "git", "-C", tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("cannot list the source tree: %w", err)
	}
	var files []vm.File
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		path := filepath.Join(tree, name)
		if _, err := os.Lstat(path); err == nil { // a removed one is still listed
			files = append(files, vm.File{Local: path, Guest: path})
		}
	}
	return files, nil
}

// followJournal writes the journal where the flag says; end waits for the last lines.
func (o *options) followJournal(ctx context.Context, m *vm.VM) (end func() error, err error) {
	if o.journal == "" {
		return func() error { return nil }, nil
	}
	var w io.Writer = os.Stderr
	closeFile := func() error { return nil }
	if o.journal != "-" {
		f, err := os.Create(o.journal)
		if err != nil {
			return nil, err
		}
		w, closeFile = f, f.Close
	}
	ctx, cancel := context.WithCancel(ctx)
	p, err := m.Start(ctx, vm.Command{Argv: []string{"journalctl", "--no-pager", "--output=short-precise", "--lines=all", "--follow"}, Stdout: w, Stderr: os.Stderr})
	if err != nil {
		cancel()
		return nil, err
	}
	return func() error {
		// What was logged before this has been written when it has ended.
		_, _ = m.Run(ctx, "journalctl", "--sync") // the VM may have ended
		cancel()
		_, _ = p.Wait() // by its context
		return closeFile()
	}, nil
}
