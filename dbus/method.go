package dbus

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/jobowner"
	"github.com/magikrun/magikpod/pod"
)

// method is one row of an interface's table: the table is what is served, and a test checks the
// introspection XML against it.
type method struct {
	name    string
	in, out string // D-Bus signatures
	action  Action // "": needs none
	max     int    // bytes of the arguments; 0: maxArguments
	heavy   bool   // it costs much memory or time, so that few of them are done at once
	bound   bool   // it ends when its caller leaves the bus; a pod is run although nobody waits for it
	handle  func(c *call) ([]any, error)
}

// limit is how many bytes the arguments may have.
func (m *method) limit() int { return cmp.Or(m.max, maxArguments) }

func (m *method) wrongArguments(signature string) error {
	return pod.Errorf(pod.Invalid, "cannot call %s: its arguments are of type %q, not %q", m.name, m.in, signature)
}

// call is one method call while it is being answered.
type call struct {
	ctx    context.Context // ends when the server closes, or earlier when the method is bound
	server *Server
	method *method
	path   godbus.ObjectPath
	sender string
	ticket *ticket
	body   []any
	files  []*os.File // of the arguments of type h, in their order; closed when the call ends unless taken
	sent   []*os.File // what the reply hands over
	msg    *godbus.Message
}

// store copies the arguments into dest; the signature was checked before.
func (c *call) store(dest ...any) error {
	if err := godbus.Store(c.body, dest...); err != nil {
		return pod.Errorf(pod.Invalid, "cannot read the arguments of %s: %w", c.method.name, err)
	}
	return nil
}

// take hands the files of the call over to the caller.
func (c *call) take() []*os.File {
	files := c.files
	c.files = nil
	return files
}

// boundMethod is a method of one object, as godbus calls it.
type boundMethod struct {
	server *Server
	method *method
	path   godbus.ObjectPath
}

// NumArguments and the three below are only asked by godbus's own argument decoder, which
// DecodeArguments replaces.
func (m boundMethod) NumArguments() int     { return 0 }
func (m boundMethod) NumReturns() int       { return 0 }
func (m boundMethod) ArgumentValue(int) any { return nil }
func (m boundMethod) ReturnValue(int) any   { return nil }

// DecodeArguments checks the signature of the call and takes its file descriptors over.
func (m boundMethod) DecodeArguments(_ *godbus.Conn, sender string, msg *godbus.Message, body []any) ([]any, error) {
	t := m.server.gate.take(sender, msg.Serial())
	files, err := takeFiles(body)
	sig, _ := msg.Headers[godbus.FieldSignature].Value().(godbus.Signature)
	switch {
	case err != nil:
	case t == nil:
		err = pod.Errorf(pod.Internal, "cannot take the call: it was not admitted")
	case sig.String() != m.method.in:
		err = m.method.wrongArguments(sig.String())
	case len(files) < strings.Count(m.method.in, "h"):
		err = pod.Errorf(pod.Invalid, "cannot call %s: a descriptor that an argument names has not come", m.method.name)
	}
	if err != nil {
		closeAll(files)
		m.server.gate.leave(t, callCost)
		return nil, toBus(err)
	}
	return []any{&call{
		ctx: jobowner.With(m.server.ctx, sender), server: m.server, method: m.method, path: m.path,
		sender: sender, ticket: t, body: body, files: files, msg: msg,
	}}, nil
}

// Call authorises and answers one call. It counts until its answer was handed to the bus.
func (m boundMethod) Call(args ...any) (out []any, err error) {
	c := args[0].(*call)
	cost := callCost
	if m.method.heavy {
		cost += heavyCost * c.ticket.bytes
	}
	defer m.server.gate.leave(c.ticket, cost)
	defer func() {
		if p := recover(); p != nil {
			m.server.log.Error("internal error in a bus method", "method", m.method.name, "panic", p, "stack", string(debug.Stack()))
			err = pod.Errorf(pod.Internal, "cannot answer %s: internal error: %v", m.method.name, p)
		}
		closeAll(c.files)
		closeAll(c.sent)
		if err != nil {
			out, err = nil, toBus(err)
		}
	}()
	done, err := m.server.enter()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := c.authorise(m.method.action); err != nil {
		return nil, err
	}
	if m.method.bound {
		ctx, release := m.server.whileThere(c.ctx, c.sender)
		defer release()
		c.ctx = ctx
	}
	if m.method.heavy {
		done, err := m.server.gate.work(c.ctx, c.ticket.user)
		if err != nil {
			return nil, err
		}
		defer done()
	}
	return nil, c.answer()
}

// answer does what was asked for and sends the answer.
func (c *call) answer() error {
	out, err := c.method.handle(c)
	if err != nil {
		return err
	}
	return c.sendReply(out)
}

// sendReply answers by itself: godbus would do so after the call was counted out, and the reply's
// files closed.
func (c *call) sendReply(out []any) error {
	if c.msg.Flags&godbus.FlagNoReplyExpected != 0 {
		return nil
	}
	if err := c.server.send(c.sender, c.msg.Serial(), "", out...); err != nil {
		return pod.Errorf(pod.Unavailable, "cannot send the answer: %w", err)
	}
	c.msg.Flags |= godbus.FlagNoReplyExpected // godbus sends no second one
	return nil
}

// authorise asks whether the sender may do the action; any doubt is a refusal.
func (c *call) authorise(action Action) error {
	if action == "" {
		return nil
	}
	interactive := c.msg.Flags&godbus.FlagAllowInteractiveAuthorization != 0
	if err := c.server.auth.Check(c.ctx, c.sender, action, interactive); err != nil {
		return pod.Errorf(pod.Denied, "cannot do %s: %w", c.method.name, err)
	}
	return nil
}

// takeFiles makes files of the descriptors in body. A client may name one descriptor twice; then
// each file gets its own.
func takeFiles(body []any) ([]*os.File, error) {
	var files []*os.File
	var fds []int
	for _, v := range body {
		fd, ok := v.(godbus.UnixFD)
		if !ok {
			continue
		}
		n := int(fd)
		if slices.Contains(fds, n) {
			dup, err := unix.FcntlInt(uintptr(n), syscall.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				closeAll(files)
				return nil, pod.Errorf(pod.Exhausted, "cannot take the file descriptors of the call: %w", err)
			}
			n = dup
		}
		fds = append(fds, n)
		files = append(files, os.NewFile(uintptr(n), fmt.Sprintf("passed%d", len(files))))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// options reads an a{sv} argument.
type options struct {
	left  map[string]godbus.Variant
	known []string
	err   error
}

func newOptions(m map[string]godbus.Variant) *options {
	return &options{left: m}
}

// take stores the option name into dest when it is there; its type must be dest's.
func (o *options) take(name string, dest any) *options {
	o.known = append(o.known, name)
	v, ok := o.left[name]
	if !ok {
		return o
	}
	delete(o.left, name)
	want := godbus.SignatureOfType(reflect.TypeOf(dest).Elem())
	if v.Signature() != want && o.err == nil {
		o.err = pod.Errorf(pod.Invalid, "cannot use option %q: it is of type %q, not %q", name, want, v.Signature())
		return o
	}
	if err := v.Store(dest); err != nil && o.err == nil {
		o.err = pod.Errorf(pod.Invalid, "cannot use option %q: %w", name, err)
	}
	return o
}

// end returns the first problem; an option that nobody took is one.
func (o *options) end() error {
	if o.err != nil {
		return o.err
	}
	for name := range o.left {
		slices.Sort(o.known)
		return pod.Errorf(pod.Invalid, "cannot use option %q: unknown option (known: %s)", name, strings.Join(o.known, ", "))
	}
	return nil
}
