// Package netsetup is all that magikpod does to the kernel's network: pod network namespaces, the
// bridge, veth pairs, addresses, masquerade and published ports, and the hosts and resolv.conf
// files of a pod.
//
// A [Manager] connects pods: [Manager.Setup] and [Manager.Teardown] are a pair, [Manager.Restore]
// follows a restart of the daemon. The first pod makes what all share, a bridge and an nftables
// table, and some time after the last they are removed. What stays, and why, is in
// docs/RATIONALE.md. Nothing is kept in memory alone: a state file names the pods, the kernel has
// the rest.
//
// What does not belong here: what a pod asks for (pod), and who keeps its namespaces (runtime/engine).
//
// Layer L2: it may import pod and runtime.
package netsetup
