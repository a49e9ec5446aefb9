package units

import (
	"context"
	"errors"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

func TestTranslate(t *testing.T) {
	cause := pod.Errorf(pod.Conflict, "cannot publish port 80: it is taken")
	for _, tc := range []struct {
		name  string
		err   error
		kind  pod.Kind
		is    error // what the result must still be
		wants string
	}{
		{"the bus's word", dbus.Error{Name: errNoSuchUnit, Body: []any{"no such unit"}}, pod.NotFound, nil, "cannot X: no such unit"},
		{"a context that has ended", context.Canceled, pod.Unavailable, context.Canceled, "cannot X: context canceled"},
		{"why a context has ended", cause, pod.Conflict, cause, "cannot X: cannot publish port 80: it is taken"},
		{"a lost connection", dbus.ErrClosed, pod.Unavailable, nil, "cannot X: the connection to systemd is lost"},
		{"anything else", errors.New("odd"), pod.Internal, nil, "cannot X: odd"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := translate(tc.err, "cannot %s", "X")
			if pod.KindOf(err) != tc.kind || err.Error() != tc.wants || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("got %v (%s), want %s (%s) that is %v", err, pod.KindOf(err), tc.wants, tc.kind, tc.is)
			}
		})
	}
	if translate(nil, "cannot X") != nil {
		t.Error("nil is an error")
	}
}
