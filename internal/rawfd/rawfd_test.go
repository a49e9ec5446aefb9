package rawfd

import (
	"errors"
	"os"
	"testing"
	"time"
)

// TestUse: the function's error comes back, the file can be waited for afterwards, and a closed
// file has no descriptor.
func TestUse(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	own := errors.New("own")
	if err := Use(r, func(fd int) error {
		if fd < 0 {
			t.Errorf("the descriptor is %d", fd)
		}
		return own
	}); err != own {
		t.Errorf("got %v, want the function's error", err)
	}
	if err := r.SetReadDeadline(time.Now()); err != nil {
		t.Errorf("the file has become blocking: %v", err)
	}
	r.Close()
	if err := Use(r, func(int) error { return nil }); err == nil {
		t.Error("a closed file has a descriptor")
	}
}
