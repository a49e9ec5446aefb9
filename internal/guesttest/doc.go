// Package guesttest runs the agent of a machine without a machine: in namespaces of its own, where it is PID 1 of a PID namespace, with real crun and real
// containers, served on a unix socket. When the test ends or dies the kernel kills all of it.
//
// Layer: none. Tests only.
package guesttest
