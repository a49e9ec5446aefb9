// Package safepath opens, makes and removes paths in directories that somebody hostile writes to: a
// container's root file system, a volume.
//
// Symlinks never lead out of the root, magic links (those of /proc) are refused, FIFOs and devices
// are not opened by accident, and nothing is removed beyond a mount point. All of it goes through
// descriptors and openat2(2) (Linux 5.6), so a symlink that is swapped in between two steps changes
// nothing.
//
// What does not belong here: paths that only the host's root can write.
package safepath
