// Package agent is what magikagent does inside a pod, and the protocols spoken with it: log relay, launch, and (for microVM pods) the wire
// protocol over vsock.
//
// What does not belong here: deciding what runs (pod), units (units).
//
// Layer L2: it may import pod and runtime.
package agent
