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

	// checkTimeout is how long polkit may take when nobody is asked, interactiveTimeout when
	// somebody is.
	checkTimeout       = 10 * time.Second
	interactiveTimeout = 2 * time.Minute

	// How many questions polkit is asked at once. The bus allows a connection 128 calls without an
	// answer, and a question that somebody is to answer may take minutes.
	maxQuestions     = 32 // that nobody is asked about
	maxUserQuestions = 4  // of one user
	maxDialogs       = 64

	// refusedTime is how long a refusal applies to the same client and action, so that one who asks
	// again and again costs polkit nothing.
	refusedTime = time.Second
	maxRefused  = 1024
)

var (
	errNotAuthorised = errors.New("not authorised (polkit says no)")
	errPassword      = errors.New("not authorised without a password (polkit): be root, or allow interactive authorization")
)

// polkit asks polkit, except for root, who may do everything. Any doubt is a refusal: no polkit, no
// answer in time, a client that has left. The subject is the client's unique bus name, which is
// never given to another client, unlike a process id.
type polkit struct {
	conn    *godbus.Conn
	next    atomic.Uint64
	userOf  func(ctx context.Context, sender string) (*user, error)
	asking  chan struct{} // of size maxQuestions
	dialogs chan struct{} // of size maxDialogs

	mu      sync.Mutex
	refused map[refusal]refusedFor
}

type refusal struct {
	sender string
	action Action
}

type refusedFor struct {
	why   error
	until time.Time
}

// newPolkit returns an [Authorizer] that asks over conn.
func newPolkit(conn *godbus.Conn, userOf func(ctx context.Context, sender string) (*user, error)) *polkit {
	return &polkit{
		conn: conn, userOf: userOf,
		asking: make(chan struct{}, maxQuestions), dialogs: make(chan struct{}, maxDialogs), refused: make(map[refusal]refusedFor),
	}
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
func (p *polkit) Check(ctx context.Context, sender string, action Action, interactive bool) error {
	if sender == "" || sender[0] != ':' {
		return errors.New("the caller is not known")
	}
	u, err := p.userOf(ctx, sender)
	if err != nil {
		return errors.New("the caller's user is not known: " + err.Error())
	}
	if u.id == 0 {
		return nil
	}
	key := refusal{sender, action}
	if err := p.refusedBefore(key); err != nil && !interactive {
		return err
	}
	done, err := p.wait(ctx, u, interactive)
	if err != nil {
		return err
	}
	defer done()
	err = p.ask(ctx, sender, action, interactive)
	if !interactive && (errors.Is(err, errNotAuthorised) || errors.Is(err, errPassword)) {
		p.refuse(key, err)
	}
	return err
}

func (p *polkit) refusedBefore(key refusal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.refused[key]; time.Now().Before(r.until) {
		return r.why
	}
	return nil
}

func (p *polkit) refuse(key refusal, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.refused) >= maxRefused {
		clear(p.refused)
	}
	p.refused[key] = refusedFor{why, time.Now().Add(refusedTime)}
}

// wait waits until the user may ask another question. A dialog doesn't keep the questions of others
// waiting.
func (p *polkit) wait(ctx context.Context, u *user, interactive bool) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	select {
	case u.questions <- struct{}{}:
	case <-ctx.Done():
		return nil, errors.New("polkit is asked about too many of your calls already")
	}
	if interactive {
		select {
		case p.dialogs <- struct{}{}:
			return func() { <-p.dialogs; <-u.questions }, nil
		default: // it may be minutes until there is room
		}
	} else {
		select {
		case p.asking <- struct{}{}:
			return func() { <-p.asking; <-u.questions }, nil
		case <-ctx.Done():
		}
	}
	<-u.questions
	return nil, errors.New("polkit is asked too much already")
}

// ask asks polkit itself.
func (p *polkit) ask(ctx context.Context, sender string, action Action, interactive bool) error {
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
		return errPassword
	}
	return errNotAuthorised
}
