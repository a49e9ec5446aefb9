package dbus

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

const (
	polkitName      = "org.freedesktop.PolicyKit1"
	polkitPath      = godbus.ObjectPath("/org/freedesktop/PolicyKit1/Authority")
	polkitInterface = "org.freedesktop.PolicyKit1.Authority"

	// checkTimeout is how long polkit may take when nobody is asked, interactiveTimeout when somebody is.
	checkTimeout       = 10 * time.Second
	interactiveTimeout = 2 * time.Minute

	// maxRoots bounds the senders that are remembered as root.
	maxRoots = 1024
)

var errNotAuthorised = errors.New("not authorised (polkit says no)")

// Polkit asks polkit, except for root, who may do everything. Any doubt is a refusal: no polkit, no answer in time, a client that has left.
// The subject is the client's unique bus name, which is never given to another client, unlike a process id.
type Polkit struct {
	conn *godbus.Conn
	next atomic.Uint64

	mu    sync.Mutex
	roots map[string]bool // senders that are root
}

// NewPolkit returns an [Authorizer] that asks over conn.
func NewPolkit(conn *godbus.Conn) *Polkit {
	return &Polkit{conn: conn, roots: make(map[string]bool)}
}

// subject is polkit's (sa{sv}).
type subject struct {
	Kind    string
	Details map[string]godbus.Variant
}

// answer is polkit's (bba{ss}).
type answer struct {
	Authorised, Challenge bool
	Details               map[string]string
}

// Check implements [Authorizer].
func (p *Polkit) Check(ctx context.Context, sender string, action Action, interactive bool) error {
	if sender == "" || sender[0] != ':' {
		return errors.New("the caller is not known")
	}
	root, err := p.isRoot(ctx, sender)
	if err != nil {
		return err
	}
	if root {
		return nil
	}
	return p.ask(ctx, sender, action, interactive)
}

// ask asks polkit itself.
func (p *Polkit) ask(ctx context.Context, sender string, action Action, interactive bool) error {
	timeout, flags := checkTimeout, uint32(0)
	if interactive {
		timeout, flags = interactiveTimeout, 1 // AllowUserInteraction
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id := "magikpod-" + strconv.FormatUint(p.next.Add(1), 10)
	who := subject{Kind: "system-bus-name", Details: map[string]godbus.Variant{"name": godbus.MakeVariant(sender)}}
	var a answer
	authority := p.conn.Object(polkitName, polkitPath)
	err := authority.CallWithContext(ctx, polkitInterface+".CheckAuthorization", 0, who, string(action), map[string]string{}, flags, id).Store(&a)
	if err != nil {
		if ctx.Err() != nil { // don't leave a password dialog behind
			authority.Go(polkitInterface+".CancelCheckAuthorization", godbus.FlagNoReplyExpected, nil, id)
			return errors.New("polkit did not answer in time")
		}
		return errors.New("polkit cannot be asked: " + err.Error())
	}
	if a.Authorised {
		return nil
	}
	if a.Challenge && !interactive {
		return errors.New("not authorised without a password (polkit): be root, or allow interactive authorization")
	}
	return errNotAuthorised
}

// isRoot asks the bus for the client's user. A unique name is one connection of one user for ever, so root is remembered.
func (p *Polkit) isRoot(ctx context.Context, sender string) (bool, error) {
	p.mu.Lock()
	known := p.roots[sender]
	p.mu.Unlock()
	if known {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var uid uint32
	if err := p.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixUser", 0, sender).Store(&uid); err != nil {
		return false, errors.New("the caller's user is not known: " + err.Error())
	}
	if uid != 0 {
		return false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.roots) >= maxRoots {
		clear(p.roots)
	}
	p.roots[sender] = true
	return true, nil
}
