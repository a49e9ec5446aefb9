package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// CallTimeout bounds a call whose context has no deadline.
const CallTimeout = 30 * time.Second

// ErrGone says that the agent could not be reached or that the connection broke: the VM, its VMM or
// the agent is not there (yet), or it refused.
var ErrGone = errors.New("the VM's agent cannot be reached")

// Client speaks to the agent of one VM. Make one with [New].
type Client struct{ dial Dialer }

// New makes a client; nothing is dialed before the first call.
func New(dial Dialer) *Client { return &Client{dial: dial} }

// link is one connection, which a context can close.
type link struct {
	conn net.Conn
	wire *wire.Conn
	ctx  context.Context
	stop func() bool // detaches the context; false: it has closed the connection
}

func (c *Client) open(ctx context.Context) (*link, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return &link{conn: conn, wire: wire.NewConn(conn), ctx: ctx, stop: context.AfterFunc(ctx, func() { conn.Close() })}, nil
}

func (l *link) close() {
	l.stop()
	l.conn.Close()
}

// explain says what an error of the connection means.
func (l *link) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*wire.Error](err); ok {
		return err
	}
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	if broken(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// broken says whether an error is that of a stream whose other end is gone.
func broken(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET, syscall.ENOTCONN, net.ErrClosed, os.ErrDeadlineExceeded} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// start opens a connection and sends the request. The caller closes it.
func (c *Client) start(ctx context.Context, request wire.Request, data any) (*link, error) {
	l, err := c.open(ctx)
	if err != nil {
		return nil, fail(request, err)
	}
	if err = l.wire.WriteRequest(request); err == nil || broken(err) {
		// A refusal comes before the whole request has gone out, when that is long.
		if readErr := l.wire.ReadReply(data); readErr != nil || err == nil {
			err = readErr
		}
	}
	if err != nil {
		err = l.explain(err)
		l.close()
		return nil, fail(request, err)
	}
	return l, nil
}

func fail(request wire.Request, err error) error {
	return fmt.Errorf("cannot %s in the VM: %w", request.Name(), err)
}

// bounded gives ctx a deadline if it has none.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
}

// call makes a request that is over with its reply.
func (c *Client) call(ctx context.Context, limit time.Duration, request wire.Request, data any) error {
	ctx, cancel := bounded(ctx, limit)
	defer cancel()
	l, err := c.start(ctx, request, data)
	if err != nil {
		return err
	}
	l.close()
	return nil
}

// Ping asks whether the agent is there.
func (c *Client) Ping(ctx context.Context) (wire.Pong, error) {
	var pong wire.Pong
	err := c.call(ctx, CallTimeout, &wire.Ping{}, &pong)
	return pong, err
}

// pause is the time between the pings of [Client.WaitReady], and so the longest that a VM is ready
// unnoticed; attemptLimit is how long one ping may take. docs/RATIONALE.md says why nobody waits
// for the VM to call.
const (
	pause        = 10 * time.Millisecond
	attemptLimit = 2 * time.Second
)

// WaitReady pings until the agent answers. It ends with ctx: the error then says what the last
// attempt said that was not cut off.
func (c *Client) WaitReady(ctx context.Context) (wire.Pong, error) {
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptLimit)
		pong, err := c.Ping(attempt)
		cancel()
		if err == nil {
			return pong, nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return pong, fmt.Errorf("%w (%w)", last, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// Configure sets up the VM.
func (c *Client) Configure(ctx context.Context, request wire.Configure) error {
	return c.call(ctx, 2*CallTimeout, &request, nil)
}

// Start starts a container that [Client.Create] has made. [wire.CodeExecFailed]: its process cannot
// be run.
func (c *Client) Start(ctx context.Context, container, id string) error {
	return c.call(ctx, CallTimeout, &wire.Start{Container: container, ID: id}, nil)
}

// Signal sends a signal to a container's first process; id is that of the attempt, or empty for
// whichever.
func (c *Client) Signal(ctx context.Context, container, id string, signal syscall.Signal) error {
	return c.call(ctx, CallTimeout, &wire.Signal{Container: container, ID: id, Signal: int(signal)}, nil)
}

// Probe has a probe made in the VM. An unsuccessful one is no error.
func (c *Client) Probe(ctx context.Context, request wire.Probe) (wire.ProbeReply, error) {
	var reply wire.ProbeReply
	err := c.call(ctx, time.Duration(request.Timeout)*time.Millisecond+CallTimeout, &request, &reply)
	reply.Check()
	return reply, err
}

// Stats returns what the containers use.
func (c *Client) Stats(ctx context.Context) (wire.StatsReply, error) {
	var reply wire.StatsReply
	err := c.call(ctx, CallTimeout, &wire.Stats{}, &reply)
	return reply, err
}

// Update changes the limits of a container; resources is linux.resources of the OCI runtime spec as
// JSON.
func (c *Client) Update(ctx context.Context, container string, resources []byte) error {
	return c.call(ctx, CallTimeout, &wire.Update{Container: container, Resources: resources}, nil)
}

// PowerOff ends the VM in good order. It returns when the agent has begun: how it goes on the VMM shows.
func (c *Client) PowerOff(ctx context.Context) error {
	return c.call(ctx, CallTimeout, &wire.PowerOff{}, nil)
}

func unexpected(f wire.Frame) error {
	return fmt.Errorf("a frame of type %q came unexpectedly", byte(f.Type))
}
