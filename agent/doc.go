// Package agent is what magikagent does inside a pod: pause (it holds the pod's namespaces and relays the containers' output) and launch (it
// mounts a container's root file system in the pod's mount namespace and has the OCI runtime create and start it), and the configuration files of both.
//
// magikagent runs once for each pod and once for each start of a container, so its memory and its start time are everybody's: this package
// imports nothing but the standard library and golang.org/x/sys/unix (not package pod either, which brings the Kubernetes types: 7 MB).
// Errors are plain therefore; they are for people and the exit status is for programs.
//
// What does not belong here: deciding what runs (pod), units (units).
//
// Layer L1: it may import pod, and does not.
package agent
