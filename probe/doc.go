// Package probe asks whether a container is well, as the kubelet does (its pkg/probe): by an HTTP
// request, a TCP connection, or a command. The daemon probes containers of the host with it,
// magikagent those of a VM: there is no second way.
//
// What does not belong here: reading a probe in a manifest, when it is made, and what follows from it
// (packages daemon and pod). A gRPC probe would be a fourth kind of [Probe]; manifests that have one are
// refused.
//
// magikagent, which must be small, links this package: no types of Kubernetes.
//
// Layer L0: it imports nothing of this module but small help.
package probe
