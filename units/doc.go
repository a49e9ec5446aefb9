// Package units is everything that magikpod says to systemd: unit names, pure builders of unit properties, and a small manager that starts,
// stops, watches and lists units over D-Bus. The unit files that magikpod ships are here too. Nobody else writes a unit name.
//
// What does not belong here: what a unit is for (runtime/native), and when it starts (pod).
//
// Layer L2: it may import pod and runtime.
package units
