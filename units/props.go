package units

import (
	"strings"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/crun"
)

// Property is a property of a transient unit, by its name on D-Bus (times are Name=USec there).
type Property = sd.Property

func prop(name string, value any) Property {
	return Property{Name: name, Value: dbus.MakeVariant(value)}
}

// execStart is the command of a service; its failure is the service's. argv[0] is an absolute path.
// The arguments are taken as they are: "$" is escaped from the expansion of variables.
// (ExecStartEx= with no-env-expand would do it too, but systemd 252 cannot read that back from its
// own file at the next daemon-reload.)
func execStart(argv ...string) Property {
	escaped := make([]string, len(argv))
	for i, arg := range argv {
		escaped[i] = strings.ReplaceAll(arg, "$", "$$")
	}
	type command struct {
		Path             string
		Argv             []string
		FailureIsIgnored bool
	}
	return prop("ExecStart", []command{{argv[0], escaped, false}})
}

// usec is a duration as systemd wants it. Zero means "infinity" in most places: callers take care of it.
func usec(d time.Duration) uint64 { return uint64(max(d, 0) / time.Microsecond) }

// infinity is systemd's word for no limit at all.
const infinity = ^uint64(0)

// Props returns the properties of the limits that are set.
func (l Limits) Props() []Property {
	var props []Property
	if l.MemoryMax > 0 {
		props = append(props, prop("MemoryMax", l.MemoryMax), prop("MemorySwapMax", uint64(0)))
	}
	if l.MemoryLow > 0 {
		props = append(props, prop("MemoryLow", l.MemoryLow))
	}
	if l.CPUQuota > 0 {
		props = append(props, prop("CPUQuotaPerSecUSec", usec(l.CPUQuota)), prop("CPUQuotaPeriodUSec", usec(cpuPeriod)))
	}
	if l.CPUWeight > 0 {
		props = append(props, prop("CPUWeight", l.CPUWeight))
	}
	if l.TasksMax > 0 {
		props = append(props, prop("TasksMax", l.TasksMax))
	}
	return props
}

// UpdateProps returns the properties for [Manager.SetProperties]: those of the limits that are not
// set are there too, and take a former limit away.
func (l Limits) UpdateProps() []Property {
	or := func(v, unset uint64) uint64 {
		if v > 0 {
			return v
		}
		return unset
	}
	swap := infinity
	if l.MemoryMax > 0 {
		swap = 0
	}
	return []Property{
		prop("MemoryMax", or(l.MemoryMax, infinity)),
		prop("MemorySwapMax", swap),
		prop("MemoryLow", l.MemoryLow),
		prop("CPUQuotaPerSecUSec", or(usec(l.CPUQuota), infinity)),
		prop("CPUQuotaPeriodUSec", usec(cpuPeriod)),
		prop("CPUWeight", or(l.CPUWeight, infinity)),
		prop("TasksMax", or(l.TasksMax, infinity)),
	}
}

// SliceProps returns the properties of a pod's slice, with the limits l.
func SliceProps(p *corev1.Pod, l Limits) []Property {
	props := []Property{
		prop("Description", "pod "+p.Namespace+"/"+p.Name),
		prop("MemoryAccounting", true),
		prop("TasksAccounting", true),
		prop("IOAccounting", true),
	}
	return append(props, l.Props()...)
}

// PodSlices returns the slices of a pod: its own, with the limits l, and the auxiliary units of that
// one's StartTransient, an ordering slice for each sidecar.
//
// A sidecar must stop after the containers that came after it, also on a host shutdown or systemctl
// stop, when nobody but systemd is there to see to it. systemd stops units in the reverse order of
// After=. But a unit that another one names stays loaded as long as that one, and a loaded unit
// cannot be started anew: with After= between containers none could be restarted alone. So an empty
// slice stands between them. It is never restarted; the sidecar is Before= it, everything after the
// sidecar is After= it, and it stops together with the pod.
func PodSlices(p *corev1.Pod, l Limits) []Aux {
	names := Names(p.Namespace, p.Name)
	props := SliceProps(p, l)
	if slices := orderSlices(p, ""); len(slices) > 0 {
		props = append(props, prop("Wants", slices))
	}
	aux := []Aux{{Name: names.Slice, Props: props}}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if !pod.Sidecar(c) {
			continue
		}
		aux = append(aux, Aux{Name: OrderSlice(p.Namespace, p.Name, c.Name), Props: []Property{
			prop("Description", "pod "+p.Namespace+"/"+p.Name+": stop "+c.Name+" after this"),
			prop("PartOf", []string{names.Pause}),
		}})
	}
	return aux
}

// orderSlices are the ordering slices of the sidecars that start before the named container; all of
// them for "".
func orderSlices(p *corev1.Pod, container string) []string {
	var slices []string
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Name == container {
			break
		}
		if pod.Sidecar(c) {
			slices = append(slices, OrderSlice(p.Namespace, p.Name, c.Name))
		}
	}
	return slices
}

// PauseUnit is what the properties of a pause unit are made from.
type PauseUnit struct {
	Namespace, Pod string
	Names          PodNames
	// Argv is the command; Argv[0] is an absolute path.
	Argv []string
	// StopSignal is SIGTERM when 0.
	StopSignal syscall.Signal
	// Notify says that the unit is up when the command keeps the pod's namespaces, as it reports
	// (READY=1).
	Notify bool
}

// PauseProps returns the properties of a pause unit.
func PauseProps(u PauseUnit) []Property {
	kind, access := "simple", "none"
	if u.Notify {
		kind, access = "notify", "main"
	}
	props := []Property{
		prop("Description", "pod "+u.Namespace+"/"+u.Pod+": pause"),
		prop("Slice", u.Names.Slice),
		prop("Type", kind),
		prop("NotifyAccess", access),
		execStart(u.Argv...),
		prop("Restart", "no"),
		prop("CollectMode", "inactive"),
		prop("KillMode", "mixed"),
		prop("TimeoutStartUSec", usec(startTimeout)),
		prop("TimeoutStopUSec", usec(pauseStopTimeout)),
		prop("StandardInput", "null"),
		prop("StandardOutput", "journal"),
		prop("StandardError", "journal"),
		prop("SyslogIdentifier", "magikpod-pause"),
		// It writes every line of every container. An interval of 0 would mean journald's own
		// limit: systemd does not pass zeros on.
		prop("LogRateLimitIntervalUSec", uint64(1)),
		prop("LogRateLimitBurst", uint32(1<<20)),
		prop("TasksMax", infinity),
		// As the kubelet's pause: the last process of the pod to be killed when memory is short.
		prop("OOMScoreAdjust", int32(-998)),
		prop("OOMPolicy", "continue"),
	}
	if u.StopSignal != 0 {
		props = append(props, prop("KillSignal", int32(u.StopSignal)))
	}
	return props
}

const (
	// startTimeout bounds how long a container may need from launch to running (the kubelet's
	// runtime request timeout).
	startTimeout     = 2 * time.Minute
	pauseStopTimeout = 10 * time.Second
	// killTimeout is for processes that were sent SIGKILL and do not go, because they hang in the
	// kernel.
	killTimeout = 10 * time.Second
)

// device is a device that a unit may use.
type device struct {
	// Path is a node in /dev, or a group of devices as "char-alsa".
	Path string
	// Access is made of r, w and m (mknod).
	Access string
}

// standardDevices may be used by every container; mknod of any device is allowed, its use is not.
func standardDevices() []device {
	var list []device
	for _, d := range crun.Devices() {
		list = append(list, device{d.Path, "rwm"})
	}
	return append(list, device{"char-pts", "rwm"}, device{"char-*", "m"}, device{"block-*", "m"})
}

// ContainerUnit is what the properties of a container's unit are made from.
type ContainerUnit struct {
	Pod       *corev1.Pod
	Container *corev1.Container
	Names     PodNames
	// Argv is the command that launches the container; Argv[0] is an absolute path.
	Argv []string
	// Stdout and Stderr are the paths of what becomes the container's; "": /dev/null. (A descriptor that
	// is passed systemd keeps until the unit is unloaded, and then forks itself to close it.)
	Stdout, Stderr string
	// StopSignal is SIGTERM when 0.
	StopSignal syscall.Signal
	// Grace is the time between the stop signal and SIGKILL; 0: SIGKILL at once.
	Grace time.Duration
	// StopAfter names the containers that end before this one when all are stopped at once. The
	// order between them follows from the pod, see [PodSlices]; here it only counts whether there
	// are any.
	StopAfter []string
	// Delegate gives the unit's cgroup to the OCI runtime.
	Delegate bool
	// Jail takes from the command all that it needs not for mounting the container's file systems
	// and jailing itself: most capabilities and system calls, new privileges, new namespaces.
	Jail bool
	// FiltersCalls says that a command with Jail allows itself few system calls when it has made
	// the jail. Until then the unit forbids those that it has no use for, instead of allowing what
	// services need: of such a list systemd makes a filter at each start, which takes it longer
	// than all else.
	FiltersCalls bool
	// InVM says that the container runs in the pod's VM, and the command stands in for it: it needs
	// the VM unit, and next to no privileges; the container's limits are not its own.
	InVM bool
}

// ContainerProps returns the properties of a container's unit. The main process is the container's
// first process, which the command announces by MAINPID=.
func ContainerProps(u ContainerUnit) []Property {
	// It stops with the pause unit, which may be started later. To start it is nobody's business
	// but the daemon's: a pause process, or a VM, that is started once more knows nothing of its pod.
	owners, need := []string{u.Names.Pause}, "PartOf"
	if u.InVM {
		owners, need = append(owners, u.Names.VM), "Requisite"
	}
	props := []Property{
		prop("Description", "pod "+u.Pod.Namespace+"/"+u.Pod.Name+": container "+u.Container.Name),
		prop("Slice", u.Names.Slice),
		prop(need, owners),
		// network.target and remote-fs.target only matter for the stop: the container goes before
		// the network and the mounts do.
		prop("After", append(append(owners[:len(owners):len(owners)], "network.target", "remote-fs.target"), orderSlices(u.Pod, u.Container.Name)...)),
	}
	if len(u.StopAfter) > 0 {
		props = append(props, prop("Before", []string{OrderSlice(u.Pod.Namespace, u.Pod.Name, u.Container.Name)}))
	}
	props = append(props,
		prop("Type", "notify"),
		// MAINPID= comes from the command, whose place as the main process the container takes.
		prop("NotifyAccess", "all"),
		// A container that has ended well stays active (exited), so that its exit code can be read,
		// also by a daemon that was not there.
		prop("RemainAfterExit", true),
		execStart(u.Argv...),
		prop("Restart", "no"),
		prop("CollectMode", "inactive"),
		prop("TimeoutStartUSec", usec(startTimeout)),
	)
	props = append(props, stopProps(u)...)
	props = append(props, processProps(u)...)
	props = append(props, deviceProps(u)...)
	props = append(props,
		prop("MemoryAccounting", true),
		prop("TasksAccounting", true),
		prop("IOAccounting", true),
		// One process out of memory takes the whole container along, as Kubernetes does it on
		// cgroup v2 (memory.oom.group).
		prop("OOMPolicy", "kill"),
	)
	var limits Limits
	if !u.InVM {
		limits = ContainerLimits(u.Container)
	}
	// The pod's limit counts, not systemd's default for a service.
	limits.TasksMax = infinity
	props = append(props, limits.Props()...)
	if u.Delegate {
		props = append(props, prop("Delegate", true))
	}
	if u.Jail {
		props = append(props, jailProps(u.FiltersCalls)...)
	}
	if u.InVM {
		props = append(props, proxyProps()...)
	}
	return props
}

// jailCapabilities are what magikshim launch and the program that it becomes need: mounts and
// namespaces of the pod (of which the daemon keeps the descriptors, hence SYS_PTRACE), files of any
// owner, and giving up the rest.
var jailCapabilities = []uint{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP,
	unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN,
}

// jailProps confine a unit (systemd.exec(5)). What systemd would do by mounts is left out: launch
// enters another mount namespace.
func jailProps(filtersCalls bool) []Property {
	calls := list{true, []string{"@system-service", "@mount"}}
	if filtersCalls {
		calls = list{false, []string{"@clock", "@cpu-emulation", "@debug", "@keyring", "@module", "@obsolete", "@raw-io", "@reboot", "@swap"}}
	}
	namespaces := uint64(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	return confinement(capabilities(jailCapabilities), namespaces, calls, "AF_UNIX", "AF_INET", "AF_INET6")
}

// proxyProps confine a command that reads its configuration, talks to a VM, and writes what a
// container in it says. The sockets of the VM and the files of the pod are other users'.
func proxyProps() []Property {
	return confinement(1<<unix.CAP_DAC_OVERRIDE, 0, list{true, []string{"@system-service"}}, "AF_UNIX", "AF_VSOCK")
}

// list is a list of what is allowed, or of what is not.
type list struct {
	Allow bool
	Names []string
}

// capabilities is a set of them as bits.
func capabilities(set []uint) (bits uint64) {
	for _, c := range set {
		bits |= 1 << c
	}
	return bits
}

// confinement takes all but these capabilities, kinds of namespaces (CLONE_NEW*), system calls and
// families of sockets from a unit.
func confinement(bounding, namespaces uint64, calls list, families ...string) []Property {
	return []Property{
		prop("NoNewPrivileges", true),
		prop("CapabilityBoundingSet", bounding),
		prop("AmbientCapabilities", uint64(0)),
		prop("RestrictNamespaces", namespaces),
		prop("SystemCallFilter", calls),
		prop("SystemCallArchitectures", []string{"native"}),
		prop("RestrictAddressFamilies", list{true, families}),
		prop("RestrictRealtime", true),
		prop("LockPersonality", true),
		prop("KeyringMode", "private"),
	}
}

func stopProps(u ContainerUnit) []Property {
	sig, timeout := u.StopSignal, u.Grace
	if sig == 0 {
		sig = syscall.SIGTERM
	}
	if u.Grace <= 0 {
		// TimeoutStopUSec=0 would be forever.
		sig, timeout = syscall.SIGKILL, killTimeout
	}
	return []Property{
		prop("KillMode", "mixed"),
		prop("KillSignal", int32(sig)),
		prop("SendSIGKILL", true),
		prop("TimeoutStopUSec", usec(timeout)),
	}
}

func processProps(u ContainerUnit) []Property {
	props := []Property{
		prop("StandardInput", "null"),
		stdProp("StandardOutput", u.Stdout),
		stdProp("StandardError", u.Stderr),
		prop("SyslogIdentifier", u.Container.Name),
		// systemd's services ignore SIGPIPE, and what is ignored is inherited: containers expect
		// the default.
		prop("IgnoreSIGPIPE", false),
	}
	for _, r := range crun.Rlimits() {
		name := "Limit" + strings.TrimPrefix(r.Type, "RLIMIT_")
		props = append(props, prop(name, r.Hard), prop(name+"Soft", r.Soft))
	}
	return props
}

// stdProp has systemd's executor open the file at path.
func stdProp(name, path string) Property {
	if path == "" {
		return prop(name, "null")
	}
	return prop(name+"File", path)
}

func deviceProps(u ContainerUnit) []Property {
	if s := u.Container.SecurityContext; !u.InVM && s != nil && s.Privileged != nil && *s.Privileged {
		return []Property{prop("DevicePolicy", "auto")}
	}
	return []Property{prop("DevicePolicy", "closed"), prop("DeviceAllow", standardDevices())}
}
