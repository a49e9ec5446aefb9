// Package runtimetest has one conformance suite for every runtime.PodManager, [Suite], and a fake one that behaves, [Fake].
//
// The suite holds a class to what the interface's comments promise, with real processes where the class runs any; the fake passes it too, so
// that what the daemon's tests build on is what the real classes do.
//
// It is imported by tests only. Layer: it may import pod and runtime.
package runtimetest
