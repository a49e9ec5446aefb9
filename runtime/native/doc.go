// Package native is the runtime class pod-containers: OCI containers by crun, runc or youki.
// [Runtime] has the OCI spec made and says how magikshim launch is to start it; it runs the
// processes of an exec. [Mixed] leaves single containers of a pod to another Runtime, that of
// modules.
//
// What does not belong here: units, logs and records (runtime/engine), the content of the OCI spec
// (runtime/oci).
//
// Layer L3: it may import the packages of L0, L1 and L2; its siblings engine, wasm and microvm never.
package native
