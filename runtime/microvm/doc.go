// Package microvm is the runtime class pod-microvm-containers: each pod is a virtual machine, in which an agent, magikagent, runs the pod's containers.
//
//	pause unit       holds the pod's network namespace, and relays the logs, as in every class
//	VM unit          magikvmm: the VMM in a jail, with its helpers; it ends when the VM does
//	container units  magikshim proxy: has the agent start the container, and ends as that does
//
// [Launcher] is a native.SandboxLauncher: the class pod-containers makes the units; here it is decided what is in them: how large the VM is,
// which disks and shares it has, how the agent is configured. Package vmm drives the VMMs, supervise runs one, attach gives it disks and shares, guestimage makes kernel
// and initramfs; runtime/microvm/wire is the protocol.
//
// What a container of such a pod sees of the host:
//
//	image                        an erofs image of its layers, read-only, shared by all VMs; a writable layer on the VM's scratch disk above it
//	configMap, secret, /etc/...  a copy, made when the container starts
//	emptyDir                     a directory of the scratch disk, or of the VM's memory
//	hostPath                     virtiofs
//
// What does not belong here: units, logs and records (runtime/engine), images (image), what goes on in the machine (runtime/microvm/guest).
//
// Layer L3.
package microvm
