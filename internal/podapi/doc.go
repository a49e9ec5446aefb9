// Package podapi has the values that a client of magikpodd sends and gets: names, options, rows of
// lists, jobs. Package pod has all of it under its own names, and that is what most import; this
// one is for programs that must start fast: package pod knows the whole API of Kubernetes, which
// takes a process some milliseconds to start with.
package podapi
