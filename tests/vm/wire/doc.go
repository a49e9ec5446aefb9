// Package wire is how a test VM (tests/vm) and the program in it speak: frames on a virtio-serial
// port, many commands at once.
//
// Layer: none. Nothing that is shipped imports this package.
package wire
