package crun

import (
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Device is a device node of Linux.
type Device struct {
	Path         string
	Major, Minor int64
}

// Devices may be used by every container, as the OCI runtime specification has it; the OCI runtime
// makes them. Beside them a container may use pseudo-terminals, and make nodes (mknod) that open
// nothing.
func Devices() []Device {
	return []Device{
		{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0}, {"/dev/ptmx", 5, 2},
	}
}

// DeviceRules are the rules that say so. A container may make nodes (CAP_MKNOD), and without rules
// could read the disks of the host, or of its VM.
func DeviceRules() []specs.LinuxDeviceCgroup {
	const ptsMajor = 136 // of pseudo-terminals
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"}}
	for _, d := range Devices() {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d.Major, Minor: &d.Minor, Access: "rwm"})
	}
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(ptsMajor)), Access: "rwm"})
}

// Rlimits are what containers get: many open files for servers, but not so many that programs which
// close "all" of them take seconds. [math.MaxUint64] is no limit.
func Rlimits() []specs.POSIXRlimit {
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 1048576},
		{Type: "RLIMIT_NPROC", Soft: math.MaxUint64, Hard: math.MaxUint64},
	}
}
