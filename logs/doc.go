// Package logs reads what containers have written: from the journal or from CRI log files, where package
// shim's relay has put it.
//
// What does not belong here: writing logs (shim, which also has the names that both use), which
// attempt is meant (daemon), the daemon's own log (daemon/logger.go).
//
// Layer L2: it may import pod and shim.
package logs
