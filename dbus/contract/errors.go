package contract

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/errkind"
)

// ErrorPrefix starts the names of our errors: org.magikpod1.Error.NotFound. What follows is the
// [errkind.Kind] itself.
const ErrorPrefix = BusName + ".Error."

// Kinds is the closed list of what may follow ErrorPrefix.
var Kinds = []errkind.Kind{
	errkind.Invalid, errkind.NotFound, errkind.AlreadyExists, errkind.Conflict, errkind.Denied, errkind.Exhausted, errkind.Unsupported, errkind.Unavailable, errkind.Internal,
}

// foreignKinds says what the errors of the bus itself mean to a client.
var foreignKinds = map[string]errkind.Kind{
	"org.freedesktop.DBus.Error.ServiceUnknown":                   errkind.Unavailable,
	"org.freedesktop.DBus.Error.NameHasNoOwner":                   errkind.Unavailable,
	"org.freedesktop.DBus.Error.NoReply":                          errkind.Unavailable,
	"org.freedesktop.DBus.Error.Disconnected":                     errkind.Unavailable,
	"org.freedesktop.DBus.Error.TimedOut":                         errkind.Unavailable,
	"org.freedesktop.DBus.Error.Timeout":                          errkind.Unavailable,
	"org.freedesktop.systemd1.NoSuchUnit":                         errkind.Unavailable,
	"org.freedesktop.systemd1.LoadFailed":                         errkind.Unavailable,
	"org.freedesktop.systemd1.UnitMasked":                         errkind.Unavailable,
	"org.freedesktop.systemd1.ShuttingDown":                       errkind.Unavailable,
	"org.freedesktop.DBus.Error.AccessDenied":                     errkind.Denied,
	"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": errkind.Denied,
	"org.freedesktop.DBus.Error.InvalidArgs":                      errkind.Invalid,
	"org.freedesktop.DBus.Error.LimitsExceeded":                   errkind.Exhausted,
	"org.freedesktop.DBus.Error.UnknownMethod":                    errkind.Unsupported,
	"org.freedesktop.DBus.Error.UnknownInterface":                 errkind.Unsupported,
	"org.freedesktop.DBus.Error.UnknownObject":                    errkind.NotFound,
	"org.freedesktop.DBus.Error.UnknownProperty":                  errkind.Unsupported,
}

// FromName makes an error of a kind from its name on the bus and its text.
func FromName(name, text string) error {
	if text == "" {
		text = name
	}
	if kind, ok := strings.CutPrefix(name, ErrorPrefix); ok && slices.Contains(Kinds, errkind.Kind(kind)) {
		return errkind.WithKind(errkind.Kind(kind), errors.New(text))
	}
	if kind, ok := foreignKinds[name]; ok {
		switch kind {
		case errkind.Unavailable:
			return errkind.Errorf(kind, "cannot reach magikpodd: %s (is it installed and running? systemctl status magikpodd)", text)
		case errkind.Denied:
			return errkind.Errorf(kind, "cannot talk to magikpodd: %s", text)
		}
		return errkind.WithKind(kind, errors.New(text))
	}
	return errkind.Errorf(errkind.Internal, "%s (%s)", text, name)
}

// FromBus gives an error that godbus returned its kind back.
func FromBus(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[godbus.Error](err); ok {
		text, _ := "", false
		if len(e.Body) > 0 {
			text, _ = e.Body[0].(string)
		}
		return FromName(e.Name, text)
	}
	if _, ok := errors.AsType[godbus.FormatError](err); ok {
		return errkind.Errorf(errkind.Invalid, "cannot ask magikpodd: an argument is not UTF-8 text, or has a NUL byte, which the bus cannot carry")
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, godbus.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
		return errkind.Errorf(errkind.Unavailable, "cannot reach magikpodd: the connection to the bus was lost")
	}
	return errkind.Errorf(errkind.Internal, "cannot talk to magikpodd: %w", err)
}

// NoBus is the error of a bus that cannot be connected to.
func NoBus(err error) error {
	return errkind.Errorf(errkind.Unavailable, "cannot connect to the system bus: %w", err)
}
