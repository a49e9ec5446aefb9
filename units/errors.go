package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

const (
	errNoSuchUnit   = "org.freedesktop.systemd1.NoSuchUnit"
	errUnitExists   = "org.freedesktop.systemd1.UnitExists"
	errUnitInactive = "org.freedesktop.systemd1.UnitInactive"
)

// kinds has the kind of each D-Bus error that is not Internal.
var kinds = map[string]pod.Kind{
	errNoSuchUnit:                                                 pod.NotFound,
	errUnitExists:                                                 pod.AlreadyExists,
	"org.freedesktop.systemd1.NoSuchProcess":                      pod.NotFound,
	"org.freedesktop.systemd1.UnitMasked":                         pod.Conflict,
	"org.freedesktop.systemd1.OnlyByDependency":                   pod.Conflict,
	errUnitInactive:                                               pod.Conflict,
	"org.freedesktop.systemd1.BadUnitSetting":                     pod.Invalid,
	"org.freedesktop.systemd1.LoadFailed":                         pod.Invalid,
	"org.freedesktop.systemd1.TransactionIsDestructive":           pod.Unavailable, // the host shuts down, or the slice is being stopped
	"org.freedesktop.systemd1.TransactionJobsConflicting":         pod.Unavailable,
	"org.freedesktop.systemd1.TransactionOrderIsCyclic":           pod.Invalid,
	"org.freedesktop.systemd1.ShuttingDown":                       pod.Unavailable,
	"org.freedesktop.DBus.Error.AccessDenied":                     pod.Denied,
	"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": pod.Denied,
	"org.freedesktop.DBus.Error.InvalidArgs":                      pod.Invalid,
	"org.freedesktop.DBus.Error.PropertyReadOnly":                 pod.Unsupported,
	"org.freedesktop.DBus.Error.UnknownProperty":                  pod.Unsupported,
	"org.freedesktop.DBus.Error.UnknownMethod":                    pod.Unsupported,
	"org.freedesktop.DBus.Error.NotSupported":                     pod.Unsupported,
	"org.freedesktop.DBus.Error.LimitsExceeded":                   pod.Exhausted,
	"org.freedesktop.DBus.Error.NoReply":                          pod.Unavailable,
	"org.freedesktop.DBus.Error.Timeout":                          pod.Unavailable,
	"org.freedesktop.DBus.Error.TimedOut":                         pod.Unavailable,
	"org.freedesktop.DBus.Error.Disconnected":                     pod.Unavailable,
	"org.freedesktop.DBus.Error.ServiceUnknown":                   pod.Unavailable,
	"org.freedesktop.DBus.Error.NameHasNoOwner":                   pod.Unavailable,
}

// translate gives an error of a call its kind and the text of what could not be done; nil stays
// nil. The library's errors end here, but for those of a context.
func translate(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	if e, ok := errors.AsType[dbus.Error](err); ok {
		kind := kinds[e.Name]
		if kind == "" {
			kind = pod.Internal
		}
		return pod.Errorf(kind, "%s: %s", what, e.Error())
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return pod.Errorf(pod.Unavailable, "%s: %w", what, err)
	}
	if kind := pod.KindOf(err); kind != pod.Internal { // why a context has ended: its owner recognizes it
		return pod.Errorf(kind, "%s: %w", what, err)
	}
	// What is neither the bus's word nor the context's is the transport's: a socket that was closed
	// here or there.
	if _, ok := errors.AsType[*net.OpError](err); ok || errors.Is(err, dbus.ErrClosed) || errors.Is(err, io.EOF) {
		return pod.Errorf(pod.Unavailable, "%s: the connection to systemd is lost", what)
	}
	return pod.Errorf(pod.Internal, "%s: %v", what, err)
}

// isError reports whether err is the D-Bus error of that name.
func isError(err error, name string) bool {
	e, ok := errors.AsType[dbus.Error](err)
	return ok && e.Name == name
}
