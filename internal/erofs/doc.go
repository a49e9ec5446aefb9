// Package erofs knows of the file system erofs what is not the kernel's business: how large an
// image says that it is.
//
// Layer: internal. runtime/microvm/disks writes the images.
package erofs
