// Package bench measures magikpod against podman kube play and against the floor, on one disposable
// Debian 13 host in one run: `make bench`.
//
// What is measured:
//
//   - TestBench, in alternating rounds with the image present: magikpodctl and podman as commands, from
//     their start to their end; magikpod over D-Bus, as a program would use it; and the floor: one
//     transient service, made over D-Bus, that runs crun on the same bundle. Then what grows with
//     pods, from 1 to 1024 of them.
//   - TestWasm: modules of pod-wasm against the bare command of wazero and against native containers.
//   - TestTimeline: where the time of one start goes, by PID 1's log (`make bench-timeline`).
//   - TestRegression: ratios to the floor against those in ratios.json (`make bench-check`, and .ci/run).
//   - TestCompare: two installed trees, each on a host of its own (`make bench-compare`).
//
// -write puts what was measured into docs/ and ratios.json. In docs/performance.md it replaces what
// stands between marks; the rest is written by hand.
//
// Layer: none. Nothing that is shipped imports this package.
package bench
