// Package crun is the mechanics of a container that the host and the agent in a VM share: what both decide is decided here, once.
//
// What does not belong here: Kubernetes' types; which OCI runtime is used and how it is called (runtime/native); the guest's protocol (runtime/microvm/wire).
//
// Layer L1: it may import internal packages only.
package crun
