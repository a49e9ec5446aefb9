// Package vmm drives virtual machine monitors: QEMU and cloud-hypervisor behind one small interface.
//
// A [Driver] turns a [Config], in which everything has been decided, into a [Command]: arguments, descriptors, and the files that the program may see. That is
// pure; package supervise carries it out. Of a running VM it makes a [Control], which attaches disks. Which of the drivers can be used on
// this host, and why the others cannot, is what [Driver.Check] says.
//
// Layer: L1, it imports no other package of the project but internal ones. What a VM is for (pods, images, the agent) is not known here.
package vmm
