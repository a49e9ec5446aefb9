// Package erofs knows of the file system erofs what is not the kernel's business: how large one says that it is.
//
// Layer: internal. What writes them is runtime/microvm/disks.
package erofs
