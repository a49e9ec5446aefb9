// Package shim is magikshim proxy: the main process of the unit of a container that runs in a VM.
// It has the agent create and start the container, copies its output to its own, passes signals on,
// and ends as the container has ended. So systemd, the journal and runtime/engine see nothing but a
// process.
//
// The container lives as long as the proxy's connection: when the proxy is killed, so is the container.
//
// There is one of these for every container, so it is small.
//
// What does not belong here: the VM (runtime/microvm), other actions than those of a container's life
// (runtime/microvm/client).
//
// Layer L2: it may import shim, runtime/microvm/client and runtime/microvm/wire.
package shim
