package disks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// Mke2fs makes scratch disks. It is in e2fsprogs, which is in every Debian but the smallest. A
// variable for tests.
var Mke2fs = "/usr/sbin/mke2fs"

// MakeScratch makes a sparse raw image of size bytes with an empty ext4 file system, whose root
// belongs to root. A file that is there already is kept as it is, whatever its size: it has a pod's
// data, and was made whole. Its blocks are taken as the guest writes them.
func MakeScratch(ctx context.Context, path string, size int64) error {
	_, err := os.Lstat(path)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot find out whether there is a scratch disk: %w", err)
	}
	if err := makeScratch(ctx, path, size); err != nil {
		return fmt.Errorf("cannot make a scratch disk: %w", err)
	}
	return nil
}

func makeScratch(ctx context.Context, path string, size int64) error {
	building := path + ".building"
	defer os.Remove(building)
	f, err := os.OpenFile(building, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// Inode tables are initialised as they are used, not by a thread of the guest's kernel;
	// nobody's but root's blocks are set aside.
	cmd := exec.CommandContext(ctx, Mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-O", "^resize_inode", "-J", "size=4", building)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", errors.Join(err, context.Cause(ctx)), tail(text))
	}
	return os.Rename(building, path)
}
