package dbus

import (
	"context"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/internal/bustest"
)

// authority is org.freedesktop.PolicyKit1 for a test: it checks the question and gives a fixed answer.
type authority struct {
	t     *testing.T
	mu    sync.Mutex
	reply answer
	fail  bool
	flags uint32
}

func (a *authority) CheckAuthorization(who subject, action string, details map[string]string, flags uint32, id string) (answer, *godbus.Error) {
	name, _ := who.Details["name"].Value().(string)
	if who.Kind != "system-bus-name" || !strings.HasPrefix(name, ":") || action != string(ActionExec) || id == "" || len(details) > 0 {
		a.t.Errorf("polkit was asked %+v %s %v %q", who, action, details, id)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flags = flags
	if a.fail {
		return answer{}, godbus.NewError("org.freedesktop.PolicyKit1.Error.Failed", []any{"no"})
	}
	return a.reply, nil
}

func TestPolkit(t *testing.T) {
	address := bustest.Start(t)
	daemon, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = daemon.Close() }()
	other, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	sender := other.Names()[0]
	userOf := func(ctx context.Context, sender string) (*user, error) {
		id, err := askUser(ctx, daemon, sender)
		return newUser(id), err
	}

	root := newPolkit(daemon, userOf)
	u, err := root.userOf(t.Context(), sender)
	if err != nil {
		t.Fatal(err)
	}
	if u.id == 0 { // this test runs as root: root passes, and polkit is not even there
		if err := root.Check(t.Context(), sender, ActionExec, false); err != nil {
			t.Errorf("root: %v", err)
		}
	}
	if err := newPolkit(daemon, userOf).Check(t.Context(), "", ActionExec, false); err == nil {
		t.Error("a caller without a name may exec")
	}
	ask := func(p *polkit, interactive bool) error { return p.ask(t.Context(), sender, ActionExec, interactive) }
	if err := ask(newPolkit(daemon, userOf), false); err == nil {
		t.Error("allowed without polkit")
	}

	a := &authority{t: t, reply: answer{Authorised: true, Details: map[string]string{}}}
	server, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if err := server.Export(a, polkitPath, polkitInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := server.RequestName(polkitName, 0); err != nil {
		t.Fatal(err)
	}
	asked := func() uint32 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.flags
	}
	p := newPolkit(daemon, userOf)
	if err := ask(p, true); err != nil || asked() != 1 {
		t.Errorf("yes, interactive: %v, flags %d; want nil, 1", err, asked())
	}
	if err := ask(p, false); err != nil || asked() != 0 {
		t.Errorf("yes: %v, flags %d; want nil, 0", err, asked())
	}
	set := func(reply answer, fail bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reply, a.fail = reply, fail
	}
	set(answer{Details: map[string]string{}}, false)
	if err := ask(p, false); err == nil {
		t.Error("no: allowed")
	}
	set(answer{Challenge: true, Details: map[string]string{}}, false)
	if err := ask(p, false); err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("challenge: %v", err)
	}
	set(answer{Authorised: true, Details: map[string]string{}}, true)
	if err := ask(p, false); err == nil {
		t.Error("polkit failed: allowed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.ask(ctx, sender, ActionExec, false); err == nil {
		t.Error("cancelled: allowed")
	}
	_ = other.Close() // a caller that has left is nobody
	for {
		var here bool
		if err := daemon.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, sender).Store(&here); err != nil {
			t.Fatal(err)
		} else if !here {
			break
		}
	}
	if err := newPolkit(daemon, userOf).Check(t.Context(), sender, ActionExec, false); err == nil {
		t.Error("a caller that has left may exec")
	}
}
