package atomicfile

import (
	"os"
	"path/filepath"
)

// Write replaces path by a file with data and perm; when it returns, the file and its name are on
// the disk. On an error path is as it was and nothing else is left.
func Write(path string, data []byte, perm os.FileMode) error { return write(path, data, perm, true) }

// WriteNoSync is Write without waiting for the disk: atomic for other processes and after a crash
// of this one, not after a power cut.
func WriteNoSync(path string, data []byte, perm os.FileMode) error {
	return write(path, data, perm, false)
}

func write(path string, data []byte, perm os.FileMode, sync bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if sync {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if sync {
		return SyncDir(dir)
	}
	return nil
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Sweep removes the temporary files in dir of processes that died while they wrote. Nobody may be
// writing there.
func Sweep(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, ".*.tmp*")) // the pattern is fine unless dir has one in it
	for _, path := range paths {
		_ = os.Remove(path)
	}
}
