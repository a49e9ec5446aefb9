// Package runtime says how pods are run: one interface, [PodManager], and the values that go in and
// come out of it.
//
// Its terms are CRI's. A Sandbox is the isolation boundary of one pod: namespaces kept by a pause
// process, or a VM. A Container is one attempt at running one container of the pod inside the
// sandbox. A Process is an extra process inside a running container (exec).
//
// runtime/engine is the only PodManager. What differs between the runtime classes is in packages
// below this one: native (OCI containers), wasm, microvm. The daemon composes: images, volumes and
// networks reach a PodManager as values ([Image], [Mount], [Network]), never as calls.
//
// What does not belong here: deciding what to do (package pod), and doing it (runtime/engine and
// the classes).
//
// Layer L1: it may import pod and probe.
package runtime
