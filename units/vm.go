package units

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// VMUnit is what the properties of a VM unit are made from.
type VMUnit struct {
	Pod   *corev1.Pod
	Names PodNames
	// Argv is the supervisor; Argv[0] is an absolute path. It tells READY=1 when the machine runs.
	Argv []string
	// Devices are those that the machine is run with. No other ones can be used.
	Devices []Device
	// StopTimeout is how long the machine may take to power off.
	StopTimeout time.Duration
}

// VMProps returns the properties of a VM unit.
func VMProps(u VMUnit) []Property {
	return []Property{
		prop("Description", "pod "+u.Pod.Namespace+"/"+u.Pod.Name+": virtual machine"),
		prop("Slice", u.Names.Slice),
		prop("Requires", []string{u.Names.Pause}),
		prop("After", []string{u.Names.Pause}),
		prop("Type", "notify"),
		prop("NotifyAccess", "main"),
		execStart(u.Argv...),
		prop("Restart", "no"),
		prop("CollectMode", "inactive"),
		prop("KillMode", "mixed"),
		prop("TimeoutStartUSec", usec(startTimeout)),
		prop("TimeoutStopUSec", usec(u.StopTimeout)),
		prop("StandardInput", "null"),
		prop("StandardOutput", "journal"),
		prop("StandardError", "journal"),
		prop("SyslogIdentifier", "magikpod-vm"),
		prop("TasksMax", infinity),
		prop("OOMPolicy", "continue"),
		prop("MemoryAccounting", true),
		prop("TasksAccounting", true),
		prop("IOAccounting", true),
		prop("DevicePolicy", "closed"),
		prop("DeviceAllow", append([]Device{{"/dev/net/tun", "rw"}}, u.Devices...)),
	}
}
