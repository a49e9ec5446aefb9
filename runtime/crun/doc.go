// Package crun is the mechanics of a container that the host and the agent in a VM share: its
// mounts, its devices and limits, the process and the terminal of an exec, and what the OCI runtime
// reports. What both decide is decided here, once.
//
// magikshim and magikagent link it, of which there is one in every pod: it imports nothing large,
// least of all Kubernetes' types.
//
// What does not belong here: which OCI runtime is used and how it is called (runtime/native); the
// guest's protocol (runtime/microvm/wire); cgroups, which need no container (internal/cgroup).
//
// Layer L0: it may import internal packages only.
package crun
