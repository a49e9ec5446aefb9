// Package daemon is the shell around the pure core: it admits pods, runs one worker for each, keeps them on disk, probes them, and does jobs.
//
// What does not belong here: decisions (pod), and the bus (dbus).
//
// Layer L4: it may import everything below; dbus never.
package daemon
