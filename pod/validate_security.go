package pod

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxSupplementalGroups is the kernel's NGROUPS_MAX.
const maxSupplementalGroups = 65536

// capabilities are those of Linux 5.9 and newer (linux/capability.h), without their CAP_.
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
	NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
	SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND
	AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

func (c *checker) podSecurity(s *corev1.PodSpec, at *field.Path) {
	sc := s.SecurityContext
	if sc == nil {
		return
	}
	c.noSELinux(at, sc.SELinuxOptions)
	if sc.SELinuxChangePolicy != nil {
		c.refuse(at.Child("seLinuxChangePolicy"), "SELinux labels are not supported")
	}
	if sc.WindowsOptions != nil {
		c.refuse(at.Child("windowsOptions"), "this host runs Linux")
	}
	c.id(at.Child("runAsUser"), sc.RunAsUser)
	c.id(at.Child("runAsGroup"), sc.RunAsGroup)
	c.id(at.Child("fsGroup"), sc.FSGroup)
	for i := range c.first(at.Child("supplementalGroups"), len(sc.SupplementalGroups), maxSupplementalGroups) {
		c.id(at.Child("supplementalGroups").Index(i), &sc.SupplementalGroups[i])
	}
	if p := sc.SupplementalGroupsPolicy; p != nil {
		oneOf(c, at.Child("supplementalGroupsPolicy"), *p, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if p := sc.FSGroupChangePolicy; p != nil {
		oneOf(c, at.Child("fsGroupChangePolicy"), *p, corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)
	}
	c.seccomp(at.Child("seccompProfile"), sc.SeccompProfile)
	c.appArmor(at.Child("appArmorProfile"), sc.AppArmorProfile)
	c.sysctls(s, at.Child("sysctls"))
}

func (k *containerChecker) security(at *field.Path) {
	sc := k.c.SecurityContext
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	k.noSELinux(at, sc.SELinuxOptions)
	if sc.WindowsOptions != nil {
		k.refuse(at.Child("windowsOptions"), "this host runs Linux")
	}
	k.id(at.Child("runAsUser"), sc.RunAsUser)
	k.id(at.Child("runAsGroup"), sc.RunAsGroup)
	if p := sc.ProcMount; p != nil {
		oneOf(k.checker, at.Child("procMount"), *p, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
	}
	k.seccomp(at.Child("seccompProfile"), sc.SeccompProfile)
	k.appArmor(at.Child("appArmorProfile"), sc.AppArmorProfile)
	var add []corev1.Capability
	if sc.Capabilities != nil {
		add = sc.Capabilities.Add
		k.capabilityNames(at.Child("capabilities", "add"), add)
		k.capabilityNames(at.Child("capabilities", "drop"), sc.Capabilities.Drop)
	}
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		escalates := func(name corev1.Capability) bool { n := capability(name); return n == "SYS_ADMIN" }
		if isTrue(sc.Privileged) || slices.ContainsFunc(add, escalates) {
			k.invalid(at.Child("allowPrivilegeEscalation"), false, "cannot be false for a container that is privileged or has CAP_SYS_ADMIN")
		}
	}
	k.nonRoot(at, sc)
}

// nonRoot finds the contradiction that needs no image to be seen.
func (k *containerChecker) nonRoot(at *field.Path, sc *corev1.SecurityContext) {
	user, nonRoot := sc.RunAsUser, sc.RunAsNonRoot
	if psc := k.spec.SecurityContext; psc != nil {
		if user == nil {
			user = psc.RunAsUser
		}
		if nonRoot == nil {
			nonRoot = psc.RunAsNonRoot
		}
	}
	if isTrue(nonRoot) && user != nil && *user == 0 {
		k.invalid(at.Child("runAsUser"), int64(0), "is root, and runAsNonRoot is true")
	}
}

func (c *checker) id(at *field.Path, id *int64) {
	if id != nil {
		c.between(at, *id, 0, math.MaxInt32)
	}
}

func (c *checker) noSELinux(at *field.Path, o *corev1.SELinuxOptions) {
	if o != nil && *o != (corev1.SELinuxOptions{}) {
		c.refuse(at.Child("seLinuxOptions"), "SELinux labels are not supported")
	}
}

func (c *checker) capabilityNames(at *field.Path, names []corev1.Capability) {
	for i, name := range names {
		if n := capability(name); n != "ALL" && !slices.Contains(capabilities, n) {
			c.invalid(at.Index(i), string(name), "is no capability of Linux")
		}
	}
}

// capability is the name in upper case and without CAP_.
func capability(name corev1.Capability) string {
	return strings.TrimPrefix(strings.ToUpper(string(name)), "CAP_")
}

func (c *checker) seccomp(at *field.Path, p *corev1.SeccompProfile) {
	if p == nil {
		return
	}
	if p.Type == corev1.SeccompProfileTypeLocalhost {
		c.refuse(at.Child("type"), "custom profiles are not supported; use RuntimeDefault or Unconfined")
		return
	}
	oneOf(c, at.Child("type"), p.Type, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	if p.LocalhostProfile != nil {
		c.refuse(at.Child("localhostProfile"), "only goes with type Localhost")
	}
}

func (c *checker) appArmor(at *field.Path, p *corev1.AppArmorProfile) {
	if p == nil {
		return
	}
	oneOf(c, at.Child("type"), p.Type, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined, corev1.AppArmorProfileTypeLocalhost)
	profile := at.Child("localhostProfile")
	local := p.Type == corev1.AppArmorProfileTypeLocalhost
	switch {
	case !local && p.LocalhostProfile != nil:
		c.refuse(profile, "only goes with type Localhost")
	case local && (p.LocalhostProfile == nil || strings.TrimSpace(*p.LocalhostProfile) == ""):
		c.required(profile, "type Localhost needs the name of a profile that is loaded")
	case local:
		c.noControl(profile, *p.LocalhostProfile)
		if len(*p.LocalhostProfile) > maxPath {
			c.add(field.TooLong(profile, "", maxPath))
		}
	}
}

// ipcSysctls belong to the IPC namespace of a pod, with those below fs.mqueue.; all below net. that
// a network namespace shows belong to it.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

var sysctlName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)+$`)

// sysctls allows those that belong to a namespace of the pod: the others would change the host. A
// pod in a VM has a kernel of its own.
func (c *checker) sysctls(s *corev1.PodSpec, at *field.Path) {
	seen := make(map[string]bool)
	for i, sysctl := range s.SecurityContext.Sysctls {
		name := at.Index(i).Child("name")
		switch {
		case sysctl.Name == "":
			c.required(name, "")
		case len(sysctl.Name) > 253 || !sysctlName.MatchString(sysctl.Name):
			c.invalid(name, sysctl.Name, "must be a name such as net.ipv4.ip_local_port_range")
		case seen[sysctl.Name]:
			c.add(field.Duplicate(name, sysctl.Name))
		case s.RuntimeClassName != nil && *s.RuntimeClassName == ClassMicroVM: // the kernel is the pod's own
		case strings.HasPrefix(sysctl.Name, "net."):
			c.namespaced(name, "network", s.HostNetwork)
		case strings.HasPrefix(sysctl.Name, "fs.mqueue."), slices.Contains(ipcSysctls, sysctl.Name):
			c.namespaced(name, "IPC", s.HostIPC)
		default:
			c.refuse(name, "it belongs to the whole host; only sysctls of the pod's namespaces can be set: net.*, fs.mqueue.*, "+strings.Join(ipcSysctls, ", "))
		}
		seen[sysctl.Name] = true
		c.noControl(at.Index(i).Child("value"), strings.ReplaceAll(sysctl.Value, "\t", " "))
	}
}

func (c *checker) namespaced(at *field.Path, namespace string, host bool) {
	if host {
		c.refuse(at, fmt.Sprintf("the pod uses the host's %s namespace", namespace))
	}
}
