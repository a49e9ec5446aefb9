package runtimetest

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
)

// Env is a host with one PodManager on it, made for one check of the suite. What it needs to be
// cleaned up, the function that makes it registers with t; the pods that the check has made are
// deleted and forgotten by then.
type Env struct {
	// Manager is the one to look at. Nothing but Class has been called yet.
	Manager runtime.PodManager
	// Image has busybox with all its commands in /bin.
	Image runtime.Image
	// Network makes the network of one pod; nil: the pods use the host's.
	Network func(t *testing.T) runtime.Network
	// Restart makes a second manager that sees what the first one has left, as after a restart of
	// the daemon. The first one is not used any more; Restart may end it. Nil: what needs it is
	// skipped.
	Restart func(t *testing.T) runtime.PodManager
	// Behave is set for a class that runs no processes: it is given what the commands of the
	// containers would do. What only processes can show is skipped then.
	Behave func(container string, attempts ...Behavior)
	// Modules is set for a class whose containers are WebAssembly modules: they know no signals, so
	// every stop ends them at once, by its signal, and no other process can be run in them. What
	// they cannot show is skipped.
	Modules bool
	// Leaks lists what is left of pods on the host; nil: it is not looked at. It is called when all
	// pods are deleted and forgotten.
	Leaks func() []string
	// Pod changes a pod of the suite before it is used: runtimeClassName, for example. Nil: nothing
	// to change.
	Pod func(p *corev1.Pod)

	patience time.Duration // 0: patience
}

// check is one promise of the interface.
type check struct {
	name string
	do   func(h *suite)
	// processes says that only real processes can show it.
	processes bool
	// native says that modules cannot show it.
	native bool
}

// checks in the order of the interface.
var checks = []check{
	{"Class", checkClass, false, false},
	{"UnknownPod", checkUnknownPod, false, false},
	{"CreateSandboxAgain", checkCreateSandboxAgain, false, false},
	{"RunWithoutSandbox", checkRunWithoutSandbox, false, false},
	{"RunContainer", checkRunContainer, false, false},
	{"ExitCodes", checkExitCodes, false, false},
	{"RunSameAttempt", checkRunSameAttempt, false, false},
	{"NextAttempt", checkNextAttempt, false, false},
	{"StartError", checkStartError, false, false},
	{"ConcurrentContainers", checkConcurrentContainers, false, false},
	{"TwoPods", checkTwoPods, false, false},
	{"Signal", checkSignal, false, false},
	{"StopObeyed", checkStopObeyed, false, false},
	{"StopKills", checkStopKills, false, true},
	{"StopAtOnce", checkStopAtOnce, false, false},
	{"StopNotRunning", checkStopNotRunning, false, false},
	{"DeleteSandbox", checkDeleteSandbox, false, false},
	{"DeleteInOrder", checkDeleteInOrder, false, false},
	{"SandboxAfterDelete", checkSandboxAfterDelete, false, false},
	{"Forget", checkForget, false, false},
	{"Exec", checkExec, false, true},
	{"ExecNotRunning", checkExecNotRunning, false, true},
	{"ExecTimeout", checkExecTimeout, false, true},
	{"ObserveIsSteady", checkObserveIsSteady, false, false},
	{"OnChange", checkOnChange, false, false},
	{"Probe", checkProbe, false, false},
	{"Figures", checkFigures, false, false},
	{"Adopt", checkAdopt, false, false},
	{"AdoptUnknownPod", checkAdoptUnknownPod, false, false},
	{"Environment", checkEnvironment, true, false},
	{"FreshLayer", checkFreshLayer, true, false},
	{"SharedNamespaces", checkSharedNamespaces, true, true},
	{"SharedTmpfs", checkSharedTmpfs, true, true},
	{"Mounts", checkMounts, true, false},
	{"SubPathStaysInside", checkSubPathStaysInside, true, false},
	{"ExecOptions", checkExecOptions, true, true},
	{"ExecTerminal", checkExecTerminal, true, true},
}

// Suite checks the manager that env makes against what the comments of [runtime.PodManager]
// promise, each promise in a subtest with an Env of its own.
func Suite(t *testing.T, env func(t *testing.T) Env) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			e := env(t)
			if c.processes && e.Behave != nil {
				t.Skip("this class runs no processes, and only they can show it")
			}
			if c.native && e.Modules {
				t.Skip("WebAssembly modules handle no signals, and have neither a second process nor /proc")
			}
			c.run(t, t, e)
		})
	}
}

// run runs the check; what it finds goes to tb.
func (c check) run(t *testing.T, tb testing.TB, e Env) {
	h := newSuite(t, tb, e)
	defer h.clean()
	c.do(h)
}
