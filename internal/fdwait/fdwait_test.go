package fdwait

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (fds [2]int) {
	t.Helper()
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return fds
}

// TestCopy: more than a pipe takes goes through it, up to its end.
func TestCopy(t *testing.T) {
	files, wake := pipe(t), pipe(t)
	defer unix.Close(wake[1])
	text := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	wrote := make(chan error, 1)
	go func() {
		n, err := Write(files[1], text, wake[0])
		if err == nil && n != len(text) {
			err = errors.New("not all was written")
		}
		unix.Close(files[1])
		wrote <- err
	}()
	var got []byte
	for buffer := make([]byte, 1000); ; {
		n, err := Read(files[0], buffer, wake[0])
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		got = append(got, buffer[:n]...)
	}
	if err := <-wrote; err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes of %d came through, %v", len(got), len(text), err)
	}
}

// TestWake: neither an empty pipe nor a full one is waited for when the wake-up has come.
func TestWake(t *testing.T) {
	for name, use := range map[string]func(files [2]int, wake int) (int, error){
		"read":  func(files [2]int, wake int) (int, error) { return Read(files[0], make([]byte, 10), wake) },
		"write": func(files [2]int, wake int) (int, error) { return Write(files[1], make([]byte, 1<<20), wake) },
	} {
		t.Run(name, func(t *testing.T) {
			files, wake := pipe(t), pipe(t)
			defer unix.Close(files[1])
			time.AfterFunc(20*time.Millisecond, func() { unix.Close(wake[1]) })
			if n, err := use(files, wake[0]); !errors.Is(err, os.ErrClosed) || n == 1<<20 {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}

// TestBroken: a file that is not open, and one that nobody reads any more, are errors.
func TestBroken(t *testing.T) {
	files, wake := pipe(t), pipe(t)
	defer unix.Close(wake[1])
	unix.Close(files[1])
	if _, err := Read(files[1], make([]byte, 1), wake[0]); err == nil {
		t.Error("a file that is not open was read")
	}
	var other [2]int
	if err := unix.Pipe2(other[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Close(other[0])
	defer unix.Close(other[1])
	if _, err := Write(other[1], []byte("x"), wake[0]); !errors.Is(err, unix.EPIPE) {
		t.Errorf("nobody reads it: %v", err)
	}
}
