// Package engine runs WebAssembly modules of the WASI preview 1 kind ("wasip1") behind a small
// interface, [Engine]; [New] makes the one of wazero.
//
// An engine is no sandbox for files: a module can leave a directory that it may write to through a
// symlink that it has made. Whoever runs a module that is not trusted runs it in a process that has
// nothing else to see (cmd/magikwasm). The clock, sleeping and the random numbers are the host's.
//
// A compiled module is kept in a directory that must be trusted, because it has machine code in it:
// CACHE/ENGINE/DIGEST, made elsewhere and renamed when it is complete, with the digests of its
// files beside them. What does not fit them is made anew.
//
// What does not belong here: jails, units and images. It builds on every system that wazero works on: a
// module can be tried without Linux.
//
// Layer L1: it may import internal packages.
package engine
