// Package microvm is the runtime class pod-microvm-containers: each pod is a VM, in which an agent,
// magikagent, runs the pod's containers.
//
//	pause unit       keeps the pod's network namespace, and relays the logs, as in every class
//	VM unit          magikvmm: the VMM in a jail, with its helpers; it ends when the VM does
//	container units  magikshim proxy: has the agent start the container, and ends as that does
//
// runtime/engine makes the units. Here it is decided what is in them: how large the VM is, which
// disks and shares it has, how the agent is configured. Package vmm drives the VMMs, supervise runs
// one, attach gives disks and shares to one that runs, guestimage makes kernel and initramfs, wire
// is the protocol.
//
// What a container of such a pod sees of the host:
//
//	image                        an erofs image of its layers, read-only, shared by all VMs; a writable layer on the VM's scratch disk above it
//	configMap, secret, /etc/...  a copy, made when the container starts
//	emptyDir                     a directory of the scratch disk, or of the VM's memory
//	hostPath                     virtiofs; without virtiofsd, a read-only copy
//
// What does not belong here: images (image), units (units), what goes on in the guest
// (runtime/microvm/guest).
//
// Layer L3.
package microvm
