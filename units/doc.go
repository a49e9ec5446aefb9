// Package units is everything that magikpod says to systemd: unit names, pure builders of unit
// properties, and a small manager that starts, stops, watches and lists units over D-Bus. The unit
// files that magikpod ships are here too. Nobody else writes a unit name.
//
// What does not belong here: what a unit is for (runtime/engine), and when it starts (pod).
//
// # The life of a unit
//
// [Manager.StartTransient] makes a unit and refers to it: it stays loaded, with its exit code, when
// it has ended. [Manager.State] returns what systemd has announced, without asking. [Manager.Stop]
// stops it, and only [Manager.Release] forgets it: after that a unit of the same name can be
// started. A daemon that comes later finds the units by [Manager.List] and adopts each by
// [Manager.Track]. References end with the daemon: what was active or has failed stays, with its
// exit code; what was stopped is forgotten.
//
// The main process of a container's unit is its first process. It must be systemd's own child when it is
// announced (MAINPID=), and READY=1 must come after that, or its exit code may be lost: see
// docs/RATIONALE.md.
//
// # Concurrency
//
// All methods may be called from any goroutine. Replies and signals come over one connection and
// are handled in the order in which systemd sent them, by one goroutine, which also calls the
// function of [Manager.OnChange]. When a [Job] has ended the State of its unit is up to date.
//
// Layer L2: it may import pod and runtime.
package units
