// Package vmm drives VMMs: QEMU and cloud-hypervisor, each in a file of its own behind one small
// interface.
//
// A [Driver] turns a [Config], in which everything has been decided, into a [Command]: arguments,
// descriptors, and the files that the program may see. That is pure; package supervise carries it
// out. Of a running VM it makes a [Control], which attaches disks. [Driver.Check] says which of the
// drivers can be used on this host, and why the others cannot.
//
// What does not belong here: what a VM is for (pods, images, the agent).
//
// Layer L1: it imports no other package of the project but internal ones.
package vmm
