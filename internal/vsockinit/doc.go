// Package vsockinit loads the kernel modules that an initramfs has, for PID 1 of a VM: magikagent,
// and the programs of tests.
//
// Layer: none.
package vsockinit
