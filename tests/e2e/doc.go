// Package e2e tests the whole of magikpod, as users see it, on a real systemd: what `make install`
// installs, on a disposable host (tests/host).
//
// The test binary boots one host and runs itself again inside it; the scripts in testdata run
// there, next to the daemon. Those directly in testdata run at the same time and keep to their own
// namespace ($NS, the script's name), which the harness empties in the end; those in testdata/alone
// change the daemon's configuration, kill it or count what it has, so nothing runs beside them.
// After each script the harness looks for what it has left in systemd, in the kernel and on disk.
//
// Scripts with a line "# over: pod-containers pod-wasm pod-microvm-containers" run over these
// classes, too: their manifests get the class, and for pod-wasm an
// image whose commands are WebAssembly modules. There is no exec there, and no signal is handled: [!class:pod-wasm] guards such lines, or `[class:pod-wasm]
// stop` ends the script. In a VM the processes are not the host's: [class:pod-containers] guards lines that look for them there. Those in testdata/wasm
// and testdata/microvm are for one class alone; [accel:kvm] and [accel:tcg] say how VMs are run.
//
// A script finds $MAGIKHOST_SLOWNESS (empty, but in an emulated VM), $NS, $IMAGES (archives),
// $REGISTRY (an address) and $BEGAN (its start, in seconds since 1970, for journalctl --since=@).
// Beside testscript's own commands there are (commands_test.go):
//
//	ctl ARGS...              magikpodctl -n $NS ARGS...
//	status N CMD ARGS...     run a command that must exit with status N
//	until TIME CMD ARGS...   run a command again and again until it succeeds
//	field POD PATH REGEXP    a value in `get POD -o json`, such as status.containerStatuses[main].restartCount; <none> when it is missing
//	await POD PATH REGEXP    the same, as soon as it is so
//	said POD NAME REGEXP     the log of the container NAME, as soon as a line of it matches
//	oneline REGEXP           standard error of the last command is one line, and matches
//	let NAME                 keep standard output of the last command in $NAME
//	http SOCKET PATH         what a server on a unix socket answers
//	udp ADDRESS TEXT         what a server answers to a datagram
//	configure FILE           give the daemon a configuration until the script ends, and restart it (alone only)
//	crash                    kill -9 the daemon and wait for its next start (alone only)
//	leaves-nothing           look for leftovers now (alone only)
//	remount ro|rw DIR        make a file system read-only until the script ends, or writable again (alone only)
//
// A script may carry labels in a line "# Labels: NAME...", and $MAGIKPOD_LABEL chooses by them.
// kernel: what it looks at depends on the kernel more than on the release of Debian, so it is worth
// its time in an emulated VM in CI, too.
//
// Layer: none. Nothing that is shipped imports this package.
package e2e
