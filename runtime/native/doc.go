// Package native runs pod-containers: OCI containers as systemd units, by crun, runc or youki.
//
// What does not belong here: the content of the OCI spec (runtime/oci), unit names and properties (units).
//
// Layer L3: it may import the packages of L0, L1 and L2; its siblings wasm and microvm never.
package native
