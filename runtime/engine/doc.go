// Package engine runs pods as systemd units: the only [runtime.PodManager]. It makes a pod's
// sandbox (namespaces, the pause unit and what else holds it), runs one attempt at a container
// after the other in units of their own, moves their logs, stops, observes and adopts them, and
// removes what they leave. What differs between runtime classes is behind [Runtime].
//
// It has no opinion on what is to run, on the names of units and slices ([Layout]), on where logs
// are (SandboxConfig, ContainerConfig), and on how many sandboxes a pod has: each has an ID. The
// daemon has one sandbox of a pod at a time, and its ID is the pod's UID.
//
// What does not belong here: what runs in a unit (runtime/native, runtime/wasm, runtime/microvm),
// unit properties (units), when to do what (daemon).
//
// Layer L3: it may import the packages of L0, L1 and L2; the classes never, nor they it.
package engine
