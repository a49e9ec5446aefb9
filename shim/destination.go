package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symlinks the kernel follows in a path (path_resolution(7)).
const maxLinks = 40

// checkDestination refuses a mount that symlinks in the container's root file system lead over
// /proc or /sys, where the OCI runtime would make it: what confines the container is there. The
// container does not run yet, so nothing changes meanwhile.
func checkDestination(root, destination string) error {
	path := "/"
	parts := strings.Split(destination, "/")
	for links := 0; len(parts) > 0; {
		part := parts[0]
		parts = parts[1:]
		if part == ".." {
			path = filepath.Dir(path)
			continue
		}
		next := filepath.Join(path, part)
		link, err := os.Readlink(root + next) // nothing in path is a symlink
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			path = next // no symlink, or nothing yet
			continue
		case err != nil:
			return fmt.Errorf("cannot mount at %s: %w", destination, err)
		}
		if links++; links > maxLinks {
			return fmt.Errorf("cannot mount at %s: %w", destination, unix.ELOOP)
		}
		if filepath.IsAbs(link) {
			path = "/"
		}
		parts = append(strings.Split(link, "/"), parts...)
	}
	if first, _, _ := strings.Cut(path[1:], "/"); first == "proc" || first == "sys" {
		return fmt.Errorf("cannot mount at %s: symlinks in the image lead to %s, and a mount there would hide what confines the container", destination, path)
	}
	return nil
}
