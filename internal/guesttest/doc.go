// Package guesttest runs the agent of a VM without a VM: as PID 1 in namespaces of its own, with
// real crun and real containers, served on a unix socket. When the test ends or dies the kernel
// kills all of it.
//
// Layer: none. Tests only.
package guesttest
