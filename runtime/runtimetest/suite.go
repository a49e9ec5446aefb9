package runtimetest

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
)

// Env is a host with one PodManager on it, made for one check of the suite. What it needs to be cleaned up, the function that makes it registers with t;
// the pods that the check has made are deleted and forgotten by then.
type Env struct {
	// Manager is the one to look at. Nothing but Class has been called yet.
	Manager runtime.PodManager
	// Image has busybox with all its commands in /bin.
	Image runtime.Image
	// Network makes the network of one pod; nil: the pods use the host's.
	Network func(t *testing.T) runtime.Network
	// Restart makes a second manager that sees what the first one has left, as after a restart of the daemon. The first one is not used any
	// more; Restart may end it. Nil: what needs it is skipped.
	Restart func(t *testing.T) runtime.PodManager
	// Behave is set for a class that runs no processes: it is told what the commands of the containers would do. What only processes can show
	// is skipped then.
	Behave func(container string, attempts ...Behavior)
	// Leaks lists what is left of pods on the host; nil: it is not looked at. It is called when all pods are deleted and forgotten.
	Leaks func() []string
	// Pod changes a pod of the suite before it is used: runtimeClassName, for example. Nil: nothing to change.
	Pod func(p *corev1.Pod)

	patience time.Duration // 0: patience
}

// check is one promise of the interface.
type check struct {
	name string
	do   func(h *suite)
	// processes says that only real processes can show it.
	processes bool
}

// checks in the order of the interface.
var checks = []check{
	{"Class", checkClass, false},
	{"UnknownPod", checkUnknownPod, false},
	{"CreateSandboxAgain", checkCreateSandboxAgain, false},
	{"RunWithoutSandbox", checkRunWithoutSandbox, false},
	{"RunContainer", checkRunContainer, false},
	{"ExitCodes", checkExitCodes, false},
	{"RunSameAttempt", checkRunSameAttempt, false},
	{"NextAttempt", checkNextAttempt, false},
	{"StartError", checkStartError, false},
	{"ConcurrentContainers", checkConcurrentContainers, false},
	{"TwoPods", checkTwoPods, false},
	{"Signal", checkSignal, false},
	{"StopObeyed", checkStopObeyed, false},
	{"StopKills", checkStopKills, false},
	{"StopAtOnce", checkStopAtOnce, false},
	{"StopNotRunning", checkStopNotRunning, false},
	{"DeleteSandbox", checkDeleteSandbox, false},
	{"DeleteInOrder", checkDeleteInOrder, false},
	{"SandboxAfterDelete", checkSandboxAfterDelete, false},
	{"Forget", checkForget, false},
	{"Exec", checkExec, false},
	{"ExecNotRunning", checkExecNotRunning, false},
	{"ExecTimeout", checkExecTimeout, false},
	{"ObserveIsSteady", checkObserveIsSteady, false},
	{"OnChange", checkOnChange, false},
	{"Adopt", checkAdopt, false},
	{"AdoptUnknownPod", checkAdoptUnknownPod, false},
	{"Environment", checkEnvironment, true},
	{"FreshLayer", checkFreshLayer, true},
	{"SharedNamespaces", checkSharedNamespaces, true},
	{"SharedTmpfs", checkSharedTmpfs, true},
	{"Mounts", checkMounts, true},
	{"SubPathStaysInside", checkSubPathStaysInside, true},
	{"ExecOptions", checkExecOptions, true},
	{"ExecTerminal", checkExecTerminal, true},
}

// Suite holds the manager that env makes to what the comments of [runtime.PodManager] promise, each promise in a subtest with an Env of its own.
func Suite(t *testing.T, env func(t *testing.T) Env) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			e := env(t)
			if c.processes && e.Behave != nil {
				t.Skip("this class runs no processes, and only they can show it")
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
