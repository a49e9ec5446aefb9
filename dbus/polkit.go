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

	// How many questions polkit is asked at once. The bus allows a connection 128 calls without an answer, and a question that somebody is to answer
	// may take minutes.
	maxQuestions     = 32 // that nobody is asked about
	maxUserQuestions = 4  // of one user
	maxDialogs       = 64

	// refusedTime is how long a refusal holds for the same client and action, so that one who asks again and again costs polkit nothing.
	refusedTime = time.Second
	maxRefused  = 1024
)

var (
	errNotAuthorised = errors.New("not authorised (polkit says no)")
	errPassword      = errors.New("not authorised without a password (polkit): be root, or allow interactive authorization")
)

// Polkit asks polkit, except for root, who may do everything. Any doubt is a refusal: no polkit, no answer in time, a client that has left.
// The subject is the client's unique bus name, which is never given to another client, unlike a process id.
type Polkit struct {
	conn   *godbus.Conn
	next   atomic.Uint64
	userOf func(ctx context.Context, sender string) (uint32, error)
	asking chan struct{} // of size maxQuestions

	mu      sync.Mutex
	dialogs int
	users   map[uint32]*questions
	refused map[refusal]refusedFor
}

// questions are those of one user.
type questions struct {
	slots   chan struct{} // of size maxUserQuestions
	callers int           // who have a slot or wait for one
}

type refusal struct {
	sender string
	action Action
}

type refusedFor struct {
	why   error
	until time.Time
}

// NewPolkit returns an [Authorizer] that asks over conn.
func NewPolkit(conn *godbus.Conn) *Polkit {
	return &Polkit{
		conn: conn, asking: make(chan struct{}, maxQuestions), users: make(map[uint32]*questions), refused: make(map[refusal]refusedFor),
		userOf: func(ctx context.Context, sender string) (uint32, error) { return askUser(ctx, conn, sender) },
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
func (p *Polkit) Check(ctx context.Context, sender string, action Action, interactive bool) error {
	if sender == "" || sender[0] != ':' {
		return errors.New("the caller is not known")
	}
	uid, err := p.userOf(ctx, sender)
	if err != nil {
		return errors.New("the caller's user is not known: " + err.Error())
	}
	if uid == 0 {
		return nil
	}
	key := refusal{sender, action}
	if err := p.refusedBefore(key); err != nil && !interactive {
		return err
	}
	done, err := p.turn(ctx, uid, interactive)
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

func (p *Polkit) refusedBefore(key refusal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.refused[key]; time.Now().Before(r.until) {
		return r.why
	}
	return nil
}

func (p *Polkit) refuse(key refusal, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.refused) >= maxRefused {
		clear(p.refused)
	}
	p.refused[key] = refusedFor{why, time.Now().Add(refusedTime)}
}

// turn waits until the user may ask another question. A dialog doesn't keep the questions of others waiting.
func (p *Polkit) turn(ctx context.Context, uid uint32, interactive bool) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	p.mu.Lock()
	u := p.users[uid]
	if u == nil {
		u = &questions{slots: make(chan struct{}, maxUserQuestions)}
		p.users[uid] = u
	}
	u.callers++
	p.mu.Unlock()
	leave := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if u.callers--; u.callers == 0 {
			delete(p.users, uid)
		}
	}
	select {
	case u.slots <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, errors.New("polkit is asked about too many of your calls already")
	}
	release, err := p.anyTurn(ctx, interactive)
	if err != nil {
		release = func() {}
	}
	done = func() { release(); <-u.slots; leave() }
	if err != nil {
		done()
	}
	return done, err
}

// anyTurn counts the questions of all users.
func (p *Polkit) anyTurn(ctx context.Context, interactive bool) (release func(), err error) {
	busy := errors.New("polkit is asked too much already")
	if !interactive {
		select {
		case p.asking <- struct{}{}:
			return func() { <-p.asking }, nil
		case <-ctx.Done():
			return nil, busy
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialogs >= maxDialogs {
		return nil, busy
	}
	p.dialogs++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dialogs--
	}, nil
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
		return errPassword
	}
	return errNotAuthorised
}
