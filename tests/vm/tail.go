package vm

import (
	"bytes"
	"context"
	"os/exec"
	"sync"
)

// tail is a writer that keeps the last 64 KiB.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	const limit = 64 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - limit; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// tarInto unpacks its standard input into a directory, each file as soon as it is there: records of
// one block are waited for, no longer ones.
func tarInto(ctx context.Context, dir string) *exec.Cmd {
	return exec.CommandContext(ctx, "tar", "--no-same-owner", "--blocking-factor=1", "-C", dir, "-xf", "-")
}
