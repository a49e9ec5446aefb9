// Package shim is magikshim, the host's helper in each pod: pause (keeps the pod's namespaces and
// relays the containers' output), launch (mounts a container's root file system in the pod's mount
// namespace, and has the OCI runtime create and start it), reap (PID 1 of a shared PID namespace),
// freeze (freezes containers for a moment), the configuration files of these, and the names that
// logs are written under.
//
// magikshim runs once for each pod and once for each start of a container, so its memory and its
// start time are everybody's: this package imports nothing large (not package pod, which brings the
// Kubernetes types: 7 MB). Its errors are plain for that reason: they are for people, and the exit
// status is for programs.
//
// What does not belong here: deciding what runs (pod), units (units), the agent in a VM
// (runtime/microvm/guest).
//
// Layer L1: it may import runtime/crun and internal packages.
package shim
