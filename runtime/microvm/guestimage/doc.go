// Package guestimage makes what VMs boot from: the kernel of the host's distribution, unpacked, and an initramfs with the agent, an OCI runtime and the
// modules that a guest needs. Both are kept, by what they were made from.
//
// Layer: L2. It knows no pod and starts no VM; what the agent does is not known here.
package guestimage
