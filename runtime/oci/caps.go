package oci

import (
	"slices"
	"strings"

	"github.com/magikrun/magikpod/pod"
)

// allCapabilities are those of Linux 5.9 and newer, in the order of linux/capability.h.
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// AllCapabilities are the names of the capabilities by their numbers.
func AllCapabilities() []string { return slices.Clone(allCapabilities) }

// defaultCapabilities are what containers of docker and containerd have.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
}

// capabilities is the container's capability set, in the kernel's order: all for privileged
// containers, else the default set with add and drop applied; ALL counts before single names, so
// that `drop: [ALL], add: [CHOWN]` leaves CHOWN, and a name in both lists is dropped.
//
// Unsupported: a capability is asked for by name that the host cannot give. ALL and privileged mean
// all that it can give.
func capabilities(in Input) ([]string, error) {
	available := in.Host.Capabilities
	if available == nil {
		available = allCapabilities
	}
	var add, drop []string
	if caps := security(in.Container).Capabilities; caps != nil {
		for _, c := range caps.Add {
			add = append(add, string(c))
		}
		for _, c := range caps.Drop {
			drop = append(drop, string(c))
		}
	}
	add, addAll, err := normalise(in, add)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := normalise(in, drop)
	if err != nil {
		return nil, err
	}
	for _, c := range add {
		if !slices.Contains(available, c) {
			return nil, pod.Errorf(pod.Unsupported, "cannot run container %q: this host cannot give the capability %s", in.Container.Name, c)
		}
	}
	base := defaultCapabilities
	switch {
	case privileged(in), addAll && !dropAll:
		base = allCapabilities
	case dropAll:
		base = nil
	}
	if privileged(in) {
		drop = nil
	}
	set := []string{}
	for _, c := range allCapabilities {
		wanted := slices.Contains(base, c) || slices.Contains(add, c)
		if wanted && !slices.Contains(drop, c) && slices.Contains(available, c) {
			set = append(set, c)
		}
	}
	return set, nil
}

// normalise gives each name its CAP_ and upper case, takes ALL out, and refuses what is no capability.
func normalise(in Input, names []string) (list []string, all bool, err error) {
	for _, name := range names {
		c := strings.ToUpper(name)
		if c == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(allCapabilities, c) {
			return nil, false, pod.Errorf(pod.Invalid, "cannot run container %q: unknown capability %q", in.Container.Name, name)
		}
		list = append(list, c)
	}
	return list, all, nil
}
