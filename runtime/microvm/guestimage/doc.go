// Package guestimage makes what VMs boot from: the kernel of the host's distribution, unpacked, and
// an initramfs with the agent, an OCI runtime and the modules that a guest needs. Both are kept, by
// what they were made from.
//
// What does not belong here: pods, starting a VM, what the agent does.
//
// Layer L2.
package guestimage
