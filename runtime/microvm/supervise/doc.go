// Package supervise is magikvmm: it runs one VM, as the VM unit of a pod ([Run]). Package attach gives disks and shares
// to a VM that runs.
//
// The supervisor joins the pod's network namespace, makes the tap, starts what the monitor needs (vhost-device-vsock, virtiofsd) and then the monitor, each in
// a jail: its own mount namespace with nothing but what it reads, its own user where that can be, no capabilities, no new privileges. It ends
// when any of them ends, and leaves no process or file.
//
// Layer: L2. It knows VMs and their drivers, no pods. It is a program of its own, and imports nothing that is heavy: one runs beside every VM.
package supervise
