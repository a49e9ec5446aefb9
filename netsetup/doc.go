// Package netsetup is all that magikpod does to the kernel's network: pod network namespaces, the bridge, veth pairs, addresses, masquerade
// and published ports, and the hosts and resolv.conf files of a pod.
//
// What does not belong here: what a pod asks for (pod), and who holds its namespaces (the runtime classes).
//
// Layer L2: it may import pod and runtime.
package netsetup
