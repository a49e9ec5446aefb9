// Package disks makes the disks of VMs: container images and directories as read-only erofs images, and scratch disks with ext4. Images of container images
// are kept in a cache and shared by all VMs.
//
// Layer: L2. What the disks are attached to, and how a guest mounts them, is not known here.
package disks
