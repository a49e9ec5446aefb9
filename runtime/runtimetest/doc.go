// Package runtimetest has one conformance suite for every runtime.PodManager, [Suite], and a fake
// one that behaves, [Fake].
//
// The suite checks what the interface's comments promise, with real processes where a class runs
// any. The fake passes it too, so the daemon's tests build on what the real classes do.
//
// Only tests import it. Layer: it may import pod and runtime.
package runtimetest
