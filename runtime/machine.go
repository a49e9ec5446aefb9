package runtime

import (
	"syscall"

	"github.com/magikrun/magikpod/pod"
)

// Machine names the virtual machine of a pod. It is what package native and a class of machines, which do not know each other, tell each other of it.
type Machine struct {
	Ref pod.Ref
	// RunDir goes with the machine's boot at the latest, StateDir stays until the pod is forgotten. Both are the class's own; it makes them.
	RunDir, StateDir string
}

// Attempt names one attempt at a container in a machine.
type Attempt struct {
	ID     string
	Number int
	Bundle string // a directory, which exists when the unit starts
	Log    string // a file
	// StopSignal is what the unit's main process gets when the container is to stop.
	StopSignal syscall.Signal
}
