package units

import (
	"encoding/hex"
	"time"

	"github.com/godbus/dbus/v5"
)

// The states of a unit that this package distinguishes; systemd has more.
const (
	ActiveActive       = "active"
	ActiveActivating   = "activating"
	ActiveDeactivating = "deactivating"
	ActiveInactive     = "inactive"
	ActiveFailed       = "failed"
)

// The values of State.ExecMainCode, as in waitid(2).
const (
	codeExited = 1
	codeKilled = 2
	codeDumped = 3
)

// State is what systemd says of a unit, by the names of its properties.
type State struct {
	Load, Active, Sub string
	// Result is "success", or why a service has failed: exit-code, signal, core-dump, oom-kill,
	// timeout, protocol, resources, watchdog, start-limit-hit.
	Result string
	// MainPID is the main process while it runs, else 0. ExecMainPID stays when it has ended.
	MainPID, ExecMainPID int
	// ExecMainCode is 1 (exited), 2 (killed) or 3 (dumped core), and 0 while the main process runs;
	// ExecMainStatus is the exit status or the signal.
	ExecMainCode, ExecMainStatus int32
	// ExecMainStart and ExecMainExit are the zero time when it has not happened.
	ExecMainStart, ExecMainExit time.Time
	// ControlGroup is the path of the unit's cgroup with a leading slash. It follows from the
	// unit's name until the unit was asked.
	ControlGroup string
	// InvocationID is 32 hexadecimal digits.
	InvocationID string
	// StatusText is what the service said last by STATUS=.
	StatusText string
	// StoppedByAdmin is true when something that is not this manager has stopped the unit while it
	// ran: systemctl stop or restart, of it or of a unit that it depends on. It is never true for a
	// unit that ended on its own, nor for one that the host's shutdown has stopped. It is false
	// when the unit was stopped before it was tracked: after a restart of the daemon nobody knows
	// any more.
	StoppedByAdmin bool

	// frozen is what systemd has said last; 252 says it only when it is asked. See [Manager.Frozen]
	// for the kernel's word.
	frozen bool
}

// Ended reports whether nothing of the unit runs any more.
func (s State) Ended() bool { return s.Active == ActiveInactive || s.Active == ActiveFailed }

// ending reports whether the unit has ended or is about to.
func (s State) ending() bool { return s.Ended() || s.Active == ActiveDeactivating }

// MainEnded reports whether the main process has ended, also when the unit remains active
// (RemainAfterExit=yes) or other processes of it still run.
func (s State) MainEnded() bool {
	return s.Ended() || s.Active == ActiveActive && s.Sub == "exited" || s.Active == ActiveDeactivating && s.MainPID == 0 && s.ExecMainCode != 0
}

// ExitCode returns the main process's exit status, and its signal when it was killed by one; code
// is 128+signal then, as shells and Kubernetes have it. Before the main process has ended, and for
// a unit that never had one, it is 0 and 0.
func (s State) ExitCode() (code, signal int) {
	switch s.ExecMainCode {
	case codeExited:
		return int(s.ExecMainStatus), 0
	case codeKilled, codeDumped:
		return 128 + int(s.ExecMainStatus), int(s.ExecMainStatus)
	}
	return 0, 0
}

// apply takes over what props has. systemd announces all of these but Load and ControlGroup, which
// do not change while a unit runs.
func (s *State) apply(props map[string]dbus.Variant) {
	store(props, "LoadState", &s.Load)
	store(props, "ActiveState", &s.Active)
	store(props, "SubState", &s.Sub)
	store(props, "Result", &s.Result)
	storeInt(props, "MainPID", &s.MainPID)
	storeInt(props, "ExecMainPID", &s.ExecMainPID)
	store(props, "ExecMainCode", &s.ExecMainCode)
	store(props, "ExecMainStatus", &s.ExecMainStatus)
	storeTime(props, "ExecMainStartTimestamp", &s.ExecMainStart)
	storeTime(props, "ExecMainExitTimestamp", &s.ExecMainExit)
	store(props, "StatusText", &s.StatusText)
	var freezer string
	if store(props, "FreezerState", &freezer); freezer != "" {
		s.frozen = freezer != "running"
	}
	var group string
	if store(props, "ControlGroup", &group); group != "" {
		s.ControlGroup = group
	}
	var id []byte
	if store(props, "InvocationID", &id); len(id) == 16 {
		s.InvocationID = hex.EncodeToString(id)
	}
}

// jobOf returns the number of the job that systemd has for the unit, 0 for none.
func jobOf(props map[string]dbus.Variant) uint32 {
	fields, ok := props["Job"].Value().([]any) // (uo)
	if !ok || len(fields) == 0 {
		return 0
	}
	id, _ := fields[0].(uint32)
	return id
}

// store sets *to when props has name with to's type.
func store[T any](props map[string]dbus.Variant, name string, to *T) {
	if v, ok := props[name].Value().(T); ok {
		*to = v
	}
}

func storeInt(props map[string]dbus.Variant, name string, to *int) {
	if v, ok := props[name].Value().(uint32); ok {
		*to = int(v)
	}
}

// storeTime reads microseconds since 1970; 0 is no time.
func storeTime(props map[string]dbus.Variant, name string, to *time.Time) {
	if v, ok := props[name].Value().(uint64); ok {
		*to = time.Time{}
		if v != 0 && v != infinity {
			*to = time.UnixMicro(int64(v))
		}
	}
}
