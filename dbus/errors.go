package dbus

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

// errorPrefix starts the names of our errors: org.magikpod1.Error.NotFound. What follows is the
// [pod.Kind] itself.
const errorPrefix = BusName + ".Error."

// kinds is the closed list of what may follow errorPrefix.
var kinds = []pod.Kind{
	pod.Invalid, pod.NotFound, pod.AlreadyExists, pod.Conflict, pod.Denied, pod.Exhausted, pod.Unsupported, pod.Unavailable, pod.Internal,
}

// foreignKinds says what the errors of the bus itself mean to a client.
var foreignKinds = map[string]pod.Kind{
	"org.freedesktop.DBus.Error.ServiceUnknown":                   pod.Unavailable,
	"org.freedesktop.DBus.Error.NameHasNoOwner":                   pod.Unavailable,
	"org.freedesktop.DBus.Error.NoReply":                          pod.Unavailable,
	"org.freedesktop.DBus.Error.Disconnected":                     pod.Unavailable,
	"org.freedesktop.DBus.Error.TimedOut":                         pod.Unavailable,
	"org.freedesktop.DBus.Error.Timeout":                          pod.Unavailable,
	"org.freedesktop.systemd1.NoSuchUnit":                         pod.Unavailable,
	"org.freedesktop.systemd1.LoadFailed":                         pod.Unavailable,
	"org.freedesktop.systemd1.UnitMasked":                         pod.Unavailable,
	"org.freedesktop.systemd1.ShuttingDown":                       pod.Unavailable,
	"org.freedesktop.DBus.Error.AccessDenied":                     pod.Denied,
	"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": pod.Denied,
	"org.freedesktop.DBus.Error.InvalidArgs":                      pod.Invalid,
	"org.freedesktop.DBus.Error.LimitsExceeded":                   pod.Exhausted,
	"org.freedesktop.DBus.Error.UnknownMethod":                    pod.Unsupported,
	"org.freedesktop.DBus.Error.UnknownInterface":                 pod.Unsupported,
	"org.freedesktop.DBus.Error.UnknownObject":                    pod.NotFound,
	"org.freedesktop.DBus.Error.UnknownProperty":                  pod.Unsupported,
}

// maxErrorText bounds the text of an error on the bus, in bytes.
const maxErrorText = 64 << 10

// errorName returns the name under which err travels; "" for nil.
func errorName(err error) string {
	if err == nil {
		return ""
	}
	return errorPrefix + string(kindOf(err))
}

// kindOf is [pod.KindOf], which also knows how a context ends.
func kindOf(err error) pod.Kind {
	kind := pod.KindOf(err)
	if kind == pod.Internal && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return pod.Unavailable
	}
	if !slices.Contains(kinds, kind) {
		return pod.Internal
	}
	return kind
}

// toBus makes the error reply for err.
func toBus(err error) *godbus.Error {
	text := busText(err.Error())
	return godbus.NewError(errorName(err), []any{text})
}

// busText bounds s, and makes it fit for the bus.
func busText(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText] + "..."
	}
	return fitText(s)
}

// fromName makes an error of a kind from its name on the bus and its text.
func fromName(name, text string) error {
	if text == "" {
		text = name
	}
	if kind, ok := strings.CutPrefix(name, errorPrefix); ok && slices.Contains(kinds, pod.Kind(kind)) {
		return pod.WithKind(pod.Kind(kind), errors.New(text))
	}
	if kind, ok := foreignKinds[name]; ok {
		switch kind {
		case pod.Unavailable:
			return pod.Errorf(kind, "cannot reach magikpodd: %s (is it installed and running? systemctl status magikpodd)", text)
		case pod.Denied:
			return pod.Errorf(kind, "cannot talk to magikpodd: %s", text)
		}
		return pod.WithKind(kind, errors.New(text))
	}
	return pod.Errorf(pod.Internal, "%s (%s)", text, name)
}

// fromBus gives an error that godbus returned its kind back.
func fromBus(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[godbus.Error](err); ok {
		text, _ := "", false
		if len(e.Body) > 0 {
			text, _ = e.Body[0].(string)
		}
		return fromName(e.Name, text)
	}
	if _, ok := errors.AsType[godbus.FormatError](err); ok {
		return pod.Errorf(pod.Invalid, "cannot ask magikpodd: an argument is not UTF-8 text, or has a NUL byte, which the bus cannot carry")
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, godbus.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
		return pod.Errorf(pod.Unavailable, "cannot reach magikpodd: the connection to the bus was lost")
	}
	return pod.Errorf(pod.Internal, "cannot talk to magikpodd: %w", err)
}
