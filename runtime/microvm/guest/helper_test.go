package guest_test

import (
	"bytes"
	"strconv"
	"sync"
)

// lineBuffer is a buffer that is read while it is written.
type lineBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lineBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(data)
}

func (b *lineBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func itoa(n int) string { return strconv.Itoa(n) }
