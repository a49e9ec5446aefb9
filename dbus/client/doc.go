// Package client calls magikpodd over org.magikpod1. It links nothing of Kubernetes: a command that
// calls once and ends would take longer to start than to be answered.
//
// What does not belong here: how a result is printed (cli).
//
// Layer L1: it knows the names on the bus (dbus/contract) and no server.
package client
