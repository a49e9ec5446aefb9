// Package runtime says what a runtime class is: one interface, [PodManager], and the values that go in and come out of it.
//
// It defines these terms, CRI's words: a Sandbox is the isolation boundary of one pod (namespaces held by a pause process, or a virtual
// machine); a Container is one attempt at running one container of the pod inside the sandbox; a Process is an extra process inside a
// running container (exec). The three classes are packages below this one: native (OCI containers), wasm, microvm. The daemon composes:
// images, volumes and networks reach a PodManager as values ([Image], [Mount], [Network]), never as calls.
//
// What does not belong here: deciding what to do (package pod), and doing it (the classes).
//
// Layer L1: it may import pod and probe.
package runtime
