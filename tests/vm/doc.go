// Package vm boots a Debian 13 VM in QEMU, for what a disposable host (tests/host) cannot have
// because the kernel below does not give it: every cgroup controller with limits that act, reboots
// and power cuts, AF_VSOCK, VMs in it.
//
//	test process -> qemu -> Linux -> initrd: erofs root below an overlay in memory -> systemd -> guest, which runs commands
//	             -> qemu with a saved state: the same, when it had booted                            -> guest
//
// The root file system, the kernel and QEMU itself come from one Debian 13 root, built once and
// cached by what it is made from; QEMU runs from it through its own dynamic loader, so that the
// release of the host does not matter. What a VM gets beyond its root (the program guest) lies in
// its initrd, and the installed tree and the files of a test in a tar archive that is a disk, both
// in memory. QEMU gets all files but the cached ones and a persistent disk as descriptors, and dies
// with its owner (PR_SET_PDEATHSIG): nothing is left behind, however it ends.
//
// Without KVM, in emulation (TCG), programs in the VM run 3 to 35 times slower than here, and
// processes start 35 to 50 times slower. Tests that wait multiply their patience by
// $MAGIKHOST_SLOWNESS, which the VM gives to its commands.
//
// Layer: none. Nothing that is shipped imports this package.
package vm
