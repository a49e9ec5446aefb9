// Package wire is the protocol between the host and magikagent, the agent in a VM: requests,
// replies, error codes, frames, and the limits of all of them. docs/agent-protocol.md is its
// description for people.
//
// One request a connection: the host writes one line of JSON, the agent answers with one. What
// follows the line of some actions are frames, in both directions. Each side takes the other for
// hostile: every bound is checked before memory is taken.
//
// What belongs here: what both sides must agree on. What does not: sockets (runtime/microvm/client,
// runtime/microvm/guest). It does no IO but on the streams that it is given.
//
// Layer L0: it imports the standard library and small help.
package wire
