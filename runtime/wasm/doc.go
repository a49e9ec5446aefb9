// Package wasm is the runtime class pod-wasm: each container is a WebAssembly module (WASI preview
// 1), run by one process, magikwasm, which is the main process of the container's unit.
//
// The engine (package engine below this one) is no sandbox for files, so the process is jailed.
// systemd takes capabilities, system calls and namespaces from the unit. magikshim launch mounts
// the image's layers in a copy of the pod's mount namespace. magikwasm (package jail) mounts the
// volumes, reads the machine code, makes the container's root its own (pivot_root), and gives up
// all capabilities, most system calls and its user before the first instruction of the module. What
// the module can reach through its one directory, /, is the image and the pod's volumes, as the
// kernel sees them: read-only ones cannot be written to. There is no /proc.
//
// The descriptors of a module: 3 is /, then a listening socket for each TCP port of the container in the
// order of the manifest. MAGIKPOD_LISTEN_FDS names them: NAME=DESCRIPTOR or PORT=DESCRIPTOR, with commas
// between.
//
// A module knows no signals: the stop signal ends the process at once. There is no second process
// in it, so exec is refused, for probes and lifecycle handlers too.
//
// What does not belong here: images (image), units (units), and what is the same for all classes
// (runtime/engine).
//
// Layer L3.
package wasm
