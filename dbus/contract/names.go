package contract

import (
	"strconv"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"k8s.io/apimachinery/pkg/types"
)

// The names on the bus. They are a contract: nothing here is ever renamed.
const (
	BusName = "org.magikpod1"

	ManagerPath = godbus.ObjectPath("/org/magikpod1")

	ManagerInterface = "org.magikpod1.Manager"
	PodInterface     = "org.magikpod1.Pod"
	JobInterface     = "org.magikpod1.Job"

	PodPrefix = string(ManagerPath) + "/pod/"
	JobPrefix = string(ManagerPath) + "/job/"

	PropertiesInterface = "org.freedesktop.DBus.Properties"

	// BusDriver is the name of the bus itself.
	BusDriver = "org.freedesktop.DBus"
)

// NotStarted begins the status (sd_notify(3), STATUS=) of a daemon that cannot start; the reason
// follows.
const NotStarted = "cannot start: "

// NoGrace in a grace_usec argument keeps the grace period of the manifest.
const NoGrace = ^uint64(0)

// PodPath returns the path of a pod's object. Every byte of the UID that is not a letter or a digit
// is written as _ and two hexadecimal digits, as systemd writes unit names in paths.
func PodPath(uid types.UID) godbus.ObjectPath {
	const hex = "0123456789abcdef"
	b := append(make([]byte, 0, 64), PodPrefix...)
	for i := range len(uid) {
		switch c := uid[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			b = append(b, c)
		default:
			b = append(b, '_', hex[c>>4], hex[c&15])
		}
	}
	return godbus.ObjectPath(b)
}

// UIDOfPath is the inverse of [PodPath].
func UIDOfPath(path godbus.ObjectPath) (types.UID, bool) {
	rest, ok := strings.CutPrefix(string(path), PodPrefix)
	if !ok || rest == "" || strings.Contains(rest, "/") {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		if rest[i] != '_' {
			b.WriteByte(rest[i])
			continue
		}
		if i+2 >= len(rest) {
			return "", false
		}
		c, err := strconv.ParseUint(rest[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	uid := types.UID(b.String())
	return uid, PodPath(uid) == path // one path for one pod, not several spellings
}

// JobPath returns the path of a job's object.
func JobPath(id uint32) godbus.ObjectPath {
	return godbus.ObjectPath(JobPrefix + strconv.FormatUint(uint64(id), 10))
}

// JobOfPath is the inverse of [JobPath].
func JobOfPath(path godbus.ObjectPath) (uint32, bool) {
	rest, ok := strings.CutPrefix(string(path), JobPrefix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(rest, 10, 32)
	if err != nil || JobPath(uint32(id)) != path {
		return 0, false
	}
	return uint32(id), true
}
