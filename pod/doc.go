// Package pod is the domain of magikpod: what a pod is, what a manifest may say, and what must be
// done next.
//
// Everything in it is a value or a pure function. It knows no clock, no file, no network and no
// process: callers pass the time in and get values out. It has manifest parsing, Kubernetes'
// defaults, validation, the limits, the environment of containers, the planner [Next] with restart
// backoff and probe thresholds, the status that Kubernetes would report, and the kinds of errors.
//
// What does not belong here: anything that touches the world. See HACKING.md, "Where does my line go?".
//
// Layer L0: of this module it imports internal packages only.
package pod
