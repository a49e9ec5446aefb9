// Package runtimetest has one conformance suite for every runtime.PodManager, and a fake one that behaves.
//
// It is imported by tests only. Layer: it may import pod and runtime.
package runtimetest
