// Package guest is the agent in a virtual machine (magikagent): PID 1, which sets up the machine, runs the pod's containers with an OCI runtime and serves the
// host over vsock.
//
// [Init] is PID 1's duty: file systems, kernel modules, the vsock port. A [Server] serves the protocol of runtime/microvm/wire on any listener, also outside of a
// machine. The OCI runtime is crun without a cgroup manager: the agent makes the cgroups, starts crun in them, and so limits, device rules and the end of all of a
// container's processes are its own; an exec is a cgroup below its container's.
//
// Only the host is served. What it says is believed as far as its own pod goes, but nothing without a bound: lines, frames, connections, containers.
//
// Concurrency: one goroutine a connection; one [Reaper] collects all children. A container belongs to the connection that created it and is removed when that
// closes.
//
// What does not belong here: deciding what runs (pod, on the host).
//
// Layer L2: it may import shim, probe and runtime/microvm/wire. magikagent is a program of its own because every pod pays for what magikshim is made of.
package guest
