// Package client is the host's side of the agent in a VM (magikagent): dialers for AF_VSOCK and for
// the unix sockets that VMMs offer instead, and one method for each action of runtime/microvm/wire.
//
// The guest is taken for hostile: a guest that sends garbage, lines or frames without end,
// gigabytes of output or nothing at all costs a bounded amount of memory and the time that the
// context allows. What it says is checked before it is returned.
//
// Each call is a connection of its own, so calls may be made from any goroutine at any time.
// Errors: a [*wire.Error] is what the agent said; ErrGone says that the connection broke; anything
// else is this side's, with the cause of the context when that ended.
//
// What does not belong here: VMMs (runtime/microvm), and what the answers mean for a pod.
//
// Layer L1: it may import runtime/microvm/wire and probe.
package client
