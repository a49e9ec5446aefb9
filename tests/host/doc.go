// Package host boots disposable systemd hosts to test on: a real systemd with D-Bus, polkit and
// journald, from this computer's own root file system or from another one, in about a second,
// thrown away without a trace.
//
// A host is a systemd-nspawn container: its root is an overlay with the writable layer in memory,
// it has its own PID, network, IPC, UTS and mount namespaces and its own part of the cgroup tree.
// What this computer's administrator has enabled (in /etc/systemd/system) is hidden, so that a host
// is the same on each computer. Several hosts may run at once.
//
//	test process -> [systemd-run --scope ->] unshare -> sh (PID 1 of an outer PID namespace) -> systemd-nspawn -> systemd
//
// Each arrow is guarded by PR_SET_PDEATHSIG, and the outer PID namespace takes everything along:
// when the test process dies in whatever way, the host dies with it. What the kernel does not
// remove then (an empty cgroup and a directory below /run/magikhost) the next [Boot] or [Sweep]
// does.
//
// Layer: none. Nothing that is shipped imports this package; tests and cmd magikhost do.
package host
