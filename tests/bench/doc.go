// Package bench measures magikpod against podman kube play and against the floor, on one disposable
// Debian 13 host in one run: `make bench`.
//
// What is measured, in alternating order, the same pod with its image present:
//
//   - magikpodctl and podman as commands, from their start to their end: run, exec, list, and stop with delete;
//   - magikpod over D-Bus, as a program would use it, and the floor: one transient service, made over D-Bus, that runs crun on the same bundle.
//
// -write puts the table into docs/performance.md.
//
// TestCompare measures two installed trees instead, each on a host of its own: `make bench-compare`.
//
// Layer: none. Nothing that is shipped imports this package.
package bench
