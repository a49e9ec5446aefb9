// Package contract is what server and client of org.magikpod1 share: names, the names of errors, rows,
// texts, and the pipes of an exec.
//
// Layer L0, without Kubernetes' types: a client must start fast.
package contract
