// Package onhost is what the runtime classes have in common whose containers are processes of this
// host: no holder of the sandbox beside the pause process, signals by the unit, probes and figures
// from here, and what magikshim launch is given.
//
// What does not belong here: anything about OCI runtimes (runtime/native) or modules (runtime/wasm).
//
// Layer L2: it may import runtime and shim.
package onhost
