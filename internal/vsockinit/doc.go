// Package vsockinit loads the kernel modules that an initramfs has, for the first process of a machine: magikagent's, and those of tests.
//
// Layer: none.
package vsockinit
