// Package guest is the agent in a VM (magikagent): PID 1, which sets up the guest, runs the pod's
// containers with an OCI runtime and serves the host over vsock.
//
// [Init] is PID 1's duty: file systems, kernel modules, the vsock port. A [Server] serves the
// protocol of runtime/microvm/wire on any listener, also outside of a VM. The OCI runtime is crun
// without a cgroup manager: the agent makes the cgroups and starts crun in them, so limits, device
// rules and the end of all of a container's processes are its own. An exec is a cgroup below its
// container's.
//
// Only the host is served. What it says is believed as far as its own pod goes, but nothing without
// a bound: lines, frames, connections, containers.
//
// Concurrency: one goroutine per connection; one [Reaper] collects all children. A container
// belongs to the connection that created it and is removed when that closes.
//
// What does not belong here: deciding what runs (pod, on the host), and what the host does alike with a
// container (runtime/crun).
//
// Layer L2: it may import shim, probe, runtime/crun and runtime/microvm/wire. magikagent is a
// program of its own because every pod pays for what magikshim is made of.
package guest
