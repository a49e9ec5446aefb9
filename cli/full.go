package cli

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/magikrun/magikpod/internal/errkind"
)

// fullProgram is magikpodctl with [Local].
const fullProgram = "magikpodctl-full"

// handOver has the full program do what this one was asked for, in its place: same arguments, files,
// process. It returns only if that cannot be.
func handOver() error {
	own, err := os.Executable()
	if err != nil {
		return errkind.Errorf(errkind.Internal, "cannot find %s: %w", fullProgram, err)
	}
	dir := filepath.Dir(own)
	for _, path := range []string{
		filepath.Join(filepath.Dir(dir), "libexec", "magikpod", fullProgram), // as make install lays it out
		filepath.Join(dir, fullProgram),                                      // as make build does
	} {
		if err = syscall.Exec(path, os.Args, os.Environ()); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return errkind.Errorf(errkind.Internal, "cannot run %s, which this needs: %w", fullProgram, err)
}
