package dbus

import (
	"context"
	"errors"
	"slices"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// maxErrorText bounds the text of an error on the bus, in bytes.
const maxErrorText = 64 << 10

// errorName returns the name under which err travels; "" for nil.
func errorName(err error) string {
	if err == nil {
		return ""
	}
	return contract.ErrorPrefix + string(kindOf(err))
}

// kindOf is [pod.KindOf], which also knows how a context ends.
func kindOf(err error) pod.Kind {
	kind := pod.KindOf(err)
	if kind == pod.Internal && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return pod.Unavailable
	}
	if !slices.Contains(contract.Kinds, kind) {
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
	return contract.FitText(s)
}
