// Package supervise runs one VM: what the VM unit of a pod does ([Run]).
//
// The supervisor joins the pod's network namespace, makes the tap, starts what the VMM needs
// (vhost-device-vsock, virtiofsd) and then the VMM, each in a jail: its own mount namespace with
// nothing but what it reads, its own user where that can be, no capabilities, no new privileges. It
// ends when any of them ends, and leaves no process or file.
//
// What does not belong here: pods; what is attached to a VM that runs (runtime/microvm/attach).
//
// Layer L2: it knows VMs and their drivers. It is a program of its own, cmd/magikvmm, and imports
// nothing large: one runs beside every VM.
package supervise
