// Package cli is magikpodctl: its commands, what they print, how they end.
//
// It links nothing of Kubernetes and no engine: the program starts for each command. What needs
// these is [Local], which cmd/magikpodctl-full has.
//
// Layer L4: it calls the daemon (dbus/client) and knows nothing of it.
package cli
