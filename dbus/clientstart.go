package dbus

import (
	"context"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// NotStarted begins the status (sd_notify(3), STATUS=) of a daemon that cannot start; the reason follows.
const NotStarted = "cannot start: "

// startCheck is how often a client looks why it gets no answer. The bus waits 25 s for a daemon that systemd starts again and again.
const startCheck = 500 * time.Millisecond

// notStarted is what the daemon told systemd.
type notStarted struct{ reason string }

func (e *notStarted) Error() string {
	return "cannot reach magikpodd: it does not start: " + e.reason + " (systemctl status magikpodd)"
}

// watchStart ends a call that waits for a daemon which cannot start.
func (c *Client) watchStart(ctx context.Context, end context.CancelCauseFunc) {
	ticker := time.NewTicker(startCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var there bool
		err := c.conn.BusObject().CallWithContext(ctx, busDriver+".NameHasOwner", 0, BusName).Store(&there)
		if err != nil || there {
			return // it is being answered
		}
		if why := c.whyNotStarted(ctx); why != nil {
			end(why)
			return
		}
	}
}

// whyNotStarted asks systemd why the daemon does not run; nil when it does, or nobody knows. Every user may ask.
func (c *Client) whyNotStarted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	const unit = godbus.ObjectPath("/org/freedesktop/systemd1/unit/magikpodd_2eservice")
	var status string
	err := c.conn.Object("org.freedesktop.systemd1", unit).CallWithContext(ctx, propertiesInterface+".Get", godbus.FlagNoAutoStart,
		"org.freedesktop.systemd1.Service", "StatusText").Store(&status)
	if reason, ok := strings.CutPrefix(status, NotStarted); ok && err == nil {
		return &notStarted{reason}
	}
	return nil
}
