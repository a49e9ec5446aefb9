// Package vsockinit is what the first processes of machines have in common: they load the modules that an initramfs has, and answer over AF_VSOCK. magikagent, which is one of them, only
// takes the modules from here; the servers are those of tests.
//
// Layer: none.
package vsockinit
