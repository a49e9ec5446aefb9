package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Read reads a file of at most limit bytes. What is no regular file (a FIFO, a device, a directory,
// a symlink) is refused, and never waited for: [Damaged].
func Read(path string, limit int64) ([]byte, error) {
	// A device does things when it is opened; nobody but root can replace the file between the two
	// calls.
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file (%s)", path, info.Mode().Type())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file (%s)", path, info.Mode().Type())
	}
	if info.Size() > limit {
		return nil, tooLarge(path, limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, tooLarge(path, limit)
	}
	return data, nil
}

func tooLarge(path string, limit int64) error {
	return fmt.Errorf("%s is larger than %d bytes", path, limit)
}

// Damaged says whether an error of [Read], or of decoding what it has read, is about what the file
// is. All others are the kernel's: the file is not there, or it cannot be read now, and then nobody
// knows what is in it.
func Damaged(err error) bool {
	_, kernel := errors.AsType[unix.Errno](err)
	return err != nil && !kernel
}
