// Package testhang makes processes that hang in the kernel, for tests.
package testhang

import (
	"encoding/binary"
	"strconv"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Dir is a directory of a FUSE server that takes requests and answers none, until release is
// called: whoever opens a file in it hangs, and no signal helps.
func Dir(t testing.TB) (dir string, asked *atomic.Bool, release func()) {
	t.Helper()
	dir, asked = t.TempDir(), &atomic.Bool{}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	if err := unix.Mount("hang", dir, "fuse", 0, "rootmode=040000,user_id=0,group_id=0,fd="+strconv.Itoa(fd)); err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	release = func() {
		select {
		case <-released:
			return
		default:
		}
		close(released)
		_ = unix.Unmount(dir, unix.MNT_FORCE) // which ends the connection, and with it all requests
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		unix.Close(fd)
	}
	t.Cleanup(release)
	go func() {
		buf := make([]byte, 1<<17)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n < 40 {
				return
			}
			switch binary.NativeEndian.Uint32(buf[4:]) { // linux/fuse.h
			case 1: // FUSE_LOOKUP
				asked.Store(true)
			case 26: // FUSE_INIT
				reply := make([]byte, 16+64)
				binary.NativeEndian.PutUint32(reply, uint32(len(reply)))
				copy(reply[8:16], buf[8:16])
				binary.NativeEndian.PutUint32(reply[16:], 7)
				binary.NativeEndian.PutUint32(reply[20:], 31)
				binary.NativeEndian.PutUint32(reply[36:], 4096)
				if _, err := unix.Write(fd, reply); err != nil {
					return
				}
			}
		}
	}()
	return dir, asked, release
}
