package client

import (
	"context"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
)

// startCheck is how often a client looks why it gets no answer. The bus waits 25 s for a daemon
// that systemd starts again and again.
const startCheck = 500 * time.Millisecond

// notStarted is what the daemon reported to systemd.
type notStarted struct{ reason string }

func (e *notStarted) Error() string {
	return "cannot reach magikpodd: it does not start: " + e.reason + " (systemctl status magikpodd)"
}

// watchStart ends a call that has waited for startCheck, if it is for a daemon which cannot start.
func (c *Client) watchStart(ctx context.Context, end context.CancelCauseFunc) {
	began, asked := time.Now().Add(-startCheck), false
	ticker := time.NewTicker(startCheck)
	defer ticker.Stop()
	for {
		var there bool
		err := c.conn.BusObject().CallWithContext(ctx, contract.BusDriver+".NameHasOwner", 0, contract.BusName).Store(&there)
		if err != nil || there {
			return // it is being answered
		}
		since, why := c.whyNotStarted(ctx)
		switch {
		case why == nil:
		case since.Before(began) && !asked && c.startUnit(ctx):
			// The bus does not ask systemd again within 25 s of a start that failed.
			asked = true
		default:
			end(why)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// startUnit asks systemd to start the daemon; false when the user may not.
func (c *Client) startUnit(ctx context.Context) bool {
	manager := c.conn.Object(systemdName, "/org/freedesktop/systemd1")
	return manager.CallWithContext(ctx, systemdName+".Manager.StartUnit", godbus.FlagNoAutoStart, daemonUnit, "replace").Err == nil
}

const (
	systemdName = "org.freedesktop.systemd1"
	daemonUnit  = "magikpodd.service"
)

// whyNotStarted asks systemd why the daemon does not run, and since when; nil when it does, or
// nobody knows. Every user may ask.
func (c *Client) whyNotStarted(ctx context.Context) (since time.Time, why error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	unit := c.conn.Object(systemdName, "/org/freedesktop/systemd1/unit/magikpodd_2eservice")
	get := func(in, property string, value any) error {
		return unit.CallWithContext(ctx, contract.PropertiesInterface+".Get", godbus.FlagNoAutoStart, systemdName+"."+in, property).Store(value)
	}
	var status, state string
	var usec uint64
	if get("Unit", "ActiveState", &state) != nil || get("Service", "StatusText", &status) != nil || get("Unit", "InactiveEnterTimestamp", &usec) != nil {
		return since, nil
	}
	reason, ok := strings.CutPrefix(status, contract.NotStarted)
	switch {
	case !ok:
		return since, nil
	case state == "failed":
		since = time.UnixMicro(int64(usec))
	default: // it tries again and again
		since = time.Now()
	}
	return since, &notStarted{reason}
}
