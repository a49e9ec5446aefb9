package units

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// VMUnit is what the properties of the unit of a pod's VM are made from.
type VMUnit struct {
	Pod   *corev1.Pod
	Names PodNames
	// Argv is the supervisor, which reports READY=1; Argv[0] is an absolute path.
	Argv []string
	// PowerOff is the time that the supervisor gives the guest to power off.
	PowerOff time.Duration
}

// vmCapabilities are what the supervisor needs (jails, the tap, namespaces that the daemon keeps,
// another user for the VMM), and virtiofsd (files of any owner). The VMM gets none.
var vmCapabilities = []uint{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP,
	unix.CAP_NET_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN, unix.CAP_MKNOD, unix.CAP_SETFCAP,
}

// vmStopTime is what the supervisor needs beyond PowerOff.
const vmStopTime = 5 * time.Second

// VMProps returns the properties of the unit of a pod's VM. The containers' units are After= it, so
// that they stop before it does.
func VMProps(u VMUnit) []Property {
	return slices.Concat([]Property{
		prop("Description", "pod "+u.Pod.Namespace+"/"+u.Pod.Name+": VM"),
		prop("Slice", u.Names.Slice),
		prop("Requires", []string{u.Names.Pause}),
		prop("After", []string{u.Names.Pause, "network.target", "remote-fs.target"}),
		prop("Type", "notify"),
		prop("NotifyAccess", "main"),
		execStart(u.Argv...),
		prop("Restart", "no"),
		prop("CollectMode", "inactive"),
		prop("TimeoutStartUSec", usec(startTimeout)),
		// The supervisor ends the others in order; what it leaves is killed.
		prop("KillMode", "mixed"),
		prop("TimeoutStopUSec", usec(u.PowerOff+vmStopTime)),
		prop("StandardInput", "null"),
		prop("StandardOutput", "journal"),
		prop("StandardError", "journal"),
		prop("SyslogIdentifier", "magikpod-vm"),
		prop("DevicePolicy", "closed"),
		prop("DeviceAllow", []device{{"/dev/kvm", "rw"}, {"/dev/net/tun", "rw"}, {"/dev/vhost-vsock", "rw"}, {"/dev/vhost-net", "rw"}}),
		prop("LimitCORE", uint64(0)),
		prop("LimitCORESoft", uint64(0)),
		prop("LimitNOFILE", uint64(1048576)),
		prop("LimitNOFILESoft", uint64(65536)),
	}, confinement(
		capabilities(vmCapabilities), unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWIPC, list{true, []string{"@system-service", "@mount"}},
		"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_VSOCK",
	), []Property{
		prop("SystemCallErrorNumber", int32(unix.EPERM)),
		prop("MemoryAccounting", true),
		prop("TasksAccounting", true),
		prop("IOAccounting", true),
		prop("OOMPolicy", "kill"),
		// The pod's limit counts, not systemd's default for a service.
		prop("TasksMax", infinity),
	})
}
