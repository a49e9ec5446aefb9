package shim

import (
	"encoding/binary"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/tests/host"
)

// TestReserved: each reserved signal is reported as often as it is sent, on whichever thread and in
// whatever work it comes.
func TestReserved(t *testing.T) {
	from, err := catchReserved()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, sig := range reserved {
			if err := setAction(sig, &sigaction{}); err != nil {
				t.Error(err)
			}
		}
		from.Close()
		unix.Close(int(sink))
	}()
	stop := make(chan struct{})
	var working sync.WaitGroup
	defer working.Wait()
	defer close(stop)
	for range 4 {
		working.Go(func() {
			for text := ""; ; text += string(make([]byte, 1000)) { // garbage, growing stacks and system calls
				select {
				case <-stop:
					return
				default:
					_ = deep(100, os.Getpid())
				}
				if len(text) > 100000 {
					text = ""
				}
			}
		})
	}
	const times = 500
	go func() {
		for range times {
			for _, sig := range reserved {
				_ = unix.Kill(unix.Getpid(), sig)
			}
			time.Sleep(10 * time.Microsecond) // the kernel keeps so many and no more
		}
	}()
	if err := from.SetReadDeadline(time.Now().Add(host.Patience(20 * time.Second))); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, times*len(reserved))
	if _, err := io.ReadFull(from, got); err != nil {
		t.Fatal(err)
	}
	for _, sig := range reserved {
		rest := slices.DeleteFunc(slices.Clone(got), func(b byte) bool { return b != byte(sig) })
		if len(rest) != times {
			t.Errorf("signal %d came %d times", int(sig), len(rest))
		}
	}
}

// deep uses the stack.
func deep(n int, value int) int {
	var data [256]byte
	binary.NativeEndian.PutUint64(data[n%200:], uint64(value))
	if n == 0 {
		return int(data[0])
	}
	return deep(n-1, value) + int(data[n])
}
