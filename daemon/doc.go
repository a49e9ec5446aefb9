// Package daemon is the shell around the pure core: it admits pods, runs one worker for each, keeps
// their records, makes their probes, and has the one table of jobs.
//
// What does not belong here: decisions (pod), reading logs (logs), and the bus (dbus).
//
// Layer L4: it may import everything below; dbus never.
package daemon
