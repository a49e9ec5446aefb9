// Package disks makes the disks of VMs: container images and directories as read-only erofs images,
// and scratch disks with ext4. The erofs images of container images are kept in a cache and shared
// by all VMs.
//
// What does not belong here: what the disks are attached to, and how a guest mounts them.
//
// Layer L2: it may import runtime.
package disks
