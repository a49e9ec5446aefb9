package dbus

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// Authorizer decides whether a client may do something.
type Authorizer interface {
	// Check returns nil when the client sender (a unique bus name) may do action. interactive: it
	// may be asked for a password, so the check may take minutes.
	Check(ctx context.Context, sender string, action Action, interactive bool) error
}

// ServerOptions configure a server. The zero value is right for the system bus.
type ServerOptions struct {
	Address    string     // of the bus; "": the system bus
	Authorizer Authorizer // nil: polkit
	Log        *slog.Logger
}

// Server puts a [Backend] on the bus.
type Server struct {
	conn    *godbus.Conn
	oracle  *godbus.Conn // asks the bus who a client is, while conn waits for the answer
	backend Backend
	auth    Authorizer
	log     *slog.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	pump    *pump
	gate    *gate
	serving atomic.Bool // all of the above is there; earlier calls are dropped

	unsubscribe func()

	mu        sync.Mutex
	closed    bool
	idleSince time.Time         // when watches last became empty
	watches   map[string]*watch // by sender
}

// Serve connects to the bus, takes the name [BusName] and answers calls until Close. It returns
// once the name is owned. Unavailable: there is no bus, or another daemon owns the name.
func Serve(ctx context.Context, backend Backend, o ServerOptions) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		backend: backend, auth: o.Authorizer, log: o.Log,
		watches: make(map[string]*watch), idleSince: time.Now(),
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.gate = newGate(s)
	if err := s.connect(ctx, o.Address); err != nil {
		s.cancel()
		return nil, contract.NoBus(err)
	}
	if s.auth == nil {
		s.auth = newPolkit(s.conn, s.knownUser)
	}
	s.pump = newPump(s)
	err := s.watchNames()
	s.wg.Go(s.pump.run)
	s.unsubscribe = backend.Subscribe(s.pump.notify)
	s.serving.Store(true)
	if err == nil {
		err = s.own()
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// own takes the bus name.
func (s *Server) own() error {
	reply, err := s.conn.RequestName(BusName, godbus.NameFlagDoNotQueue)
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot take the bus name %s: %w", BusName, err)
	}
	if reply != godbus.RequestNameReplyPrimaryOwner && reply != godbus.RequestNameReplyAlreadyOwner {
		return pod.Errorf(pod.Unavailable, "cannot take the bus name %s: another magikpodd has it", BusName)
	}
	return nil
}

// Lost is closed when the connection to the bus is gone: the daemon must end (systemd starts it
// again) or serve anew.
func (s *Server) Lost() <-chan struct{} { return s.conn.Context().Done() }

// Close ends the server: calls being answered are cancelled, exec'ed processes killed. It waits for
// everything that it started.
func (s *Server) Close() error {
	if s.unsubscribe != nil {
		s.unsubscribe()
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.gate.close()
	s.cancel()
	if s.pump != nil {
		s.pump.close()
	}
	err := errors.Join(s.conn.Close(), s.oracle.Close())
	s.wg.Wait()
	return err
}

var errEnding = pod.Errorf(pod.Unavailable, "cannot take the call: magikpodd is ending")

// enter makes Close wait until done.
func (s *Server) enter() (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errEnding
	}
	s.wg.Add(1)
	return s.wg.Done, nil
}

// Idle says since when nobody has used the server; ok is false while a call is being answered, a
// process runs by exec, or a client is subscribed.
func (s *Server) Idle() (since time.Time, ok bool) {
	since, ok = s.gate.idle()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idleSince.After(since) {
		since = s.idleSince
	}
	return since, ok && len(s.watches) == 0
}

// Leave gives the bus name up if the server is idle, so that the daemon may end; the bus starts it
// again for the next call. A call that slipped in before the name was gone makes Leave take the
// name back and return false.
func (s *Server) Leave() bool {
	before, ok := s.Idle()
	if !ok {
		return false
	}
	if _, err := s.conn.ReleaseName(BusName); err != nil {
		return false
	}
	// The reply to this second call comes behind every call that the bus had routed to us before.
	if err := s.conn.BusObject().Call(busDriver+".GetId", 0).Err; err != nil {
		return true // no bus: nobody can call
	}
	if since, ok := s.Idle(); ok && since.Equal(before) {
		return true
	}
	if err := s.own(); err != nil {
		s.log.Warn("could not take the bus name back", "error", err)
	}
	return false
}

// objects finds the object, interface and method of a call.
type objects struct{ server *Server }

// LookupObject implements [godbus.Handler].
func (o objects) LookupObject(path godbus.ObjectPath) (godbus.ServerObject, bool) {
	return object{o.server, path, o.server.interfaces(path)}, true // every path can be introspected, and answers with our own words
}

type object struct {
	server *Server
	path   godbus.ObjectPath
	set    map[string][]method
}

// LookupInterface implements [godbus.ServerObject].
func (o object) LookupInterface(name string) (godbus.Interface, bool) {
	if name == introspectableInterface {
		return iface{o, introspectMethods}, true
	}
	if name == "" { // the interface may be left out of a call
		var all []method
		for _, key := range slices.Sorted(maps.Keys(o.set)) {
			all = append(all, o.set[key]...)
		}
		return iface{o, all}, len(all) > 0
	}
	methods, ok := o.set[name]
	return iface{o, methods}, ok
}

type iface struct {
	object  object
	methods []method
}

// LookupMethod implements [godbus.Interface].
func (i iface) LookupMethod(name string) (godbus.Method, bool) {
	for n := range i.methods {
		if i.methods[n].name == name {
			return boundMethod{i.object.server, &i.methods[n], i.object.path}, true
		}
	}
	return nil, false
}

// interfaces returns the methods of the object at path, by interface; nil when there can be no such
// object. Whether the pod or job exists is found out by the methods themselves, after the caller
// was authorised.
func (s *Server) interfaces(path godbus.ObjectPath) map[string][]method {
	if path == ManagerPath {
		return managerObject
	}
	if _, ok := contract.UIDOfPath(path); ok {
		return podObject
	}
	if _, ok := contract.JobOfPath(path); ok {
		return jobObject
	}
	return nil
}

// The interfaces of each kind of object. Set in init, as the methods refer to them in turn.
var managerObject, podObject, jobObject map[string][]method

func init() {
	managerObject = map[string][]method{
		ManagerInterface: managerMethods, propertiesInterface: propertyMethods(managerProperties),
		objectManagerInterface: objectManagerMethods,
	}
	podObject = map[string][]method{PodInterface: podMethods, propertiesInterface: propertyMethods(podPropertiesOf)}
	jobObject = map[string][]method{JobInterface: jobMethods, propertiesInterface: propertyMethods(jobPropertiesOf)}
}
