// Package runtimetest has a fake runtime.PodManager that behaves: [Fake].
//
// It is imported by tests only. Layer: it may import pod and runtime.
package runtimetest
