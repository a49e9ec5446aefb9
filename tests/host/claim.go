package host

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// runDir holds a directory for each host: its lock, which the owner holds as long as it lives, its
// seed, and in the file "cgroup" the path of its cgroup.
const runDir = "/run/magikhost"

// claim makes a name and a locked directory for a new host.
func claim() (*Host, error) {
	unlock, err := lockRunDir()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	h := &Host{name: "magikhost-" + hex.EncodeToString(random[:]), exited: make(chan struct{}), output: &tail{}}
	h.dir = filepath.Join(runDir, h.name)
	if h.cgroup, err = cgroupFor(h.name); err != nil {
		return nil, err
	}
	for _, dir := range []string{h.dir, filepath.Join(h.dir, "mnt"), filepath.Join(h.dir, "seed")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cannot claim a host: %w", err)
		}
	}
	if h.lock, err = lockFile(filepath.Join(h.dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("cannot claim a host: %w", err)
	}
	return h, nil
}

// record writes down where the host's cgroup is, for Sweep.
func (h *Host) record() error {
	return os.WriteFile(filepath.Join(h.dir, "cgroup"), []byte(h.cgroup), 0o600)
}

// Sweep removes what is left of hosts whose owners have died.
func Sweep() error {
	if _, err := os.Stat(runDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockRunDir()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, sweepOne(filepath.Join(runDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// sweepOne removes the host of dir if nobody holds its lock.
func sweepOne(dir string) error {
	lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil // its owner lives
	}
	if err == nil {
		defer lock.Close()
	}
	cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err == nil && strings.HasPrefix(string(cgroup), "/sys/fs/cgroup/") {
		if err := errors.Join(killCgroup(string(cgroup)), removeCgroup(string(cgroup))); err != nil {
			return fmt.Errorf("cannot sweep %s: %w", dir, err)
		}
	}
	return os.RemoveAll(dir) // its mounts were in a namespace that is gone
}

// lockRunDir makes runDir and keeps others from adding to it, sweeping it or removing it until the
// returned function is called, which removes it when it is empty.
func lockRunDir() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(runDir, 0o755); err != nil {
			return nil, err
		}
		f, err := os.Open(runDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // just removed
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", runDir, err)
		}
		locked, err1 := f.Stat()
		present, err2 := os.Stat(runDir)
		if err1 == nil && err2 == nil && os.SameFile(locked, present) {
			return func() { _ = os.Remove(runDir); _ = f.Close() }, nil
		}
		_ = f.Close() // it was removed while we waited for the lock
	}
}

// lockFile opens path, which is made when missing, and locks it (flock(2)) until the file is closed.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return f, nil
}
