package units

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/pod"
)

const (
	busName      = "org.freedesktop.systemd1"
	busPath      = dbus.ObjectPath("/org/freedesktop/systemd1")
	unitRoot     = "/org/freedesktop/systemd1/unit/"
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
	propsIface   = "org.freedesktop.DBus.Properties"
)

// Manager talks to systemd. Its methods may be called from any goroutine.
//
// It has one private connection to the system bus for calls and signals alike, so that replies and
// signals have one order (that in which systemd sent them): a signal about a unit's former life is
// never taken for one about its present life, and what a call has read never overwrites what a
// later signal brought. Signals go into an unbounded queue as they arrive, and one goroutine works
// on it: a slow consumer never delays a reply.
//
// It refers to no unit (AddRef=, RefUnit): for each that a client refers to, systemd adds a match rule
// to its own connection, and the bus allows 512. Beyond those references get lost, or stay when the
// client has left, and dead units keep their names. systemd sends how a unit has ended before it
// removes it, and keeps what has failed or has RemainAfterExit=.
type Manager struct {
	conn    *dbus.Conn
	systemd *sd.Conn
	object  dbus.BusObject
	queue   *queue
	events  *groupEvents
	version string

	closeOnce sync.Once
	lost      chan struct{} // closed when the connection has ended
	done      chan struct{} // closed when run has returned
	calls     atomic.Int64  // calls under way whose reply is a job

	// reloads counts the reloads of systemd; reloading is true during one. Both are run's own.
	reloads   int
	reloading bool

	// releasing keeps the clean-up of empty slices apart from the start of units in them: see stopIdle.
	releasing sync.RWMutex

	// keeping guards kept, and is held while a cgroup is thawed: see KeepFrozen.
	keeping sync.Mutex
	kept    map[string]int

	// mu guards everything that follows. Only run writes the records in units.
	mu       sync.Mutex
	onChange []*func(unit string)
	units    map[string]*record
	pods     map[string]map[string]*record // the same by podOf: what is asked of a pod does not take longer where there are many
	paths    map[dbus.ObjectPath]string    // of the tracked units
	jobs     map[uint32][]*Job             // of ours, not done; two stops of a unit at once are one job of systemd's
	early    map[uint32]string             // results of jobs that ended while calls were under way
	idle     map[string]*time.Timer        // of namespace slices that may be empty; nil after Close

	sliceIdle time.Duration
	sweeps    sync.WaitGroup // stops of empty slices under way
}

// Connect connects to systemd over the system bus. ctx bounds the connecting only. Errors are of
// kind Unavailable.
func Connect(ctx context.Context) (*Manager, error) {
	m := &Manager{
		queue: newQueue(),
		lost:  make(chan struct{}),
		kept:  map[string]int{},
		done:  make(chan struct{}),
		units: map[string]*record{},
		pods:  map[string]map[string]*record{},
		paths: map[dbus.ObjectPath]string{},
		jobs:  map[uint32][]*Job{},
		early: map[uint32]string{},
		idle:  map[string]*time.Timer{},

		sliceIdle: defaultSliceIdle,
	}
	conn, err := buslink.ConnectThrough(ctx, "", gate{m}, nil, dbus.WithSignalHandler(m.queue))
	if err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot connect to systemd over the system bus: %w", err)
	}
	m.conn = conn
	m.object = conn.Object(busName, busPath)
	// go-systemd would open two connections; it gets the one that we have.
	if m.systemd, err = sd.NewConnection(func() (*dbus.Conn, error) { return conn, nil }); err == nil {
		err = m.subscribe(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, pod.Errorf(pod.Unavailable, "cannot subscribe to the signals of systemd: %w", err)
	}
	if m.events, err = newGroupEvents(); err != nil {
		conn.Close()
		return nil, pod.Errorf(pod.Unavailable, "cannot watch cgroups: %w", err)
	}
	go m.run()
	go m.events.run(m.groupChanged) // ends in connectionLost
	go func() {
		<-conn.Context().Done()
		m.connectionLost()
	}()
	return m, nil
}

// subscribe asks for the signals. The bus cannot match the beginning of a name, and has a limit on
// rules per connection that is below the number of our units, so one rule brings the changes of all
// units and dispatch keeps ours.
func (m *Manager) subscribe(ctx context.Context) error {
	const common = "type='signal',sender='" + busName + "',"
	rules := []string{
		"type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='" + busName + "'",
		common + "interface='" + managerIface + "',member='JobRemoved'",
		common + "interface='" + managerIface + "',member='UnitRemoved'",
		common + "interface='" + managerIface + "',member='Reloading'",
		common + "interface='" + propsIface + "',member='PropertiesChanged',arg0='" + unitIface + "'",
		common + "interface='" + propsIface + "',member='PropertiesChanged',arg0='" + serviceIface + "'",
	}
	for _, rule := range rules {
		if err := m.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Err; err != nil {
			return err
		}
	}
	var owner string
	if err := m.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, busName).Store(&owner); err != nil {
		return err
	}
	m.queue.trust(owner, false)
	if err := m.object.CallWithContext(ctx, managerIface+".Subscribe", 0).Err; err != nil {
		return err
	}
	return m.object.CallWithContext(ctx, propsIface+".Get", 0, managerIface, "Version").Store(&m.version)
}

// Close ends the connection. Jobs that are not done fail; units live on.
func (m *Manager) Close() error {
	m.sweepAll(nil)
	m.sweeps.Wait()
	err := m.conn.Close()
	m.connectionLost()
	<-m.done
	return err
}

// connectionLost ends everything that waits for systemd.
func (m *Manager) connectionLost() {
	m.closeOnce.Do(func() {
		close(m.lost)
		m.queue.close()
		m.events.close()
		m.mu.Lock()
		defer m.mu.Unlock()
		for id, jobs := range m.jobs {
			delete(m.jobs, id)
			for _, job := range jobs {
				job.finish(resultLost)
			}
		}
	})
}

// Lost returns a channel that is closed when the connection to systemd has ended, also by Close.
// What State returns is no longer true then.
func (m *Manager) Lost() <-chan struct{} { return m.lost }

// Version returns systemd's version, such as "257.13-1~deb13u1".
func (m *Manager) Version() string { return m.version }

// OnChange adds a function that is called with the name of each tracked unit whose State has
// changed, until the returned function is called. Every runtime class adds one, and knows its own
// units. They are called from one goroutine, one after the other, and must neither block nor call
// the manager's methods but State. Add one before the first unit that it wants to hear of is
// started or tracked.
func (m *Manager) OnChange(changed func(unit string)) (remove func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onChange = append(slices.Clone(m.onChange), &changed)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.onChange = slices.DeleteFunc(slices.Clone(m.onChange), func(f *func(string)) bool { return f == &changed })
	}
}

// State returns what is known of a tracked unit; false when it is not tracked. It asks nobody.
func (m *Manager) State(unit string) (State, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.units[unit]; r != nil {
		return r.state, true
	}
	return State{}, false
}

// Kill sends sig to the main process of a unit (who is "main") or to all of its processes ("all").
// NotFound: there is no such unit or no such process.
func (m *Manager) Kill(ctx context.Context, unit, who string, sig syscall.Signal) error {
	return translate(m.systemd.KillUnitWithTarget(ctx, unit, sd.Who(who), int32(sig)), "cannot send signal %d to unit %s", int(sig), unit)
}

// SetProperties changes properties of a unit that exists, until it is unloaded. NotFound: there is
// no such unit.
func (m *Manager) SetProperties(ctx context.Context, unit string, props []Property) error {
	return translate(m.systemd.SetUnitPropertiesContext(ctx, unit, true, props...), "cannot change unit %s", unit)
}

// List returns the names of the loaded units that match a pattern of glob(7), sorted. Units that
// are only named by others are left out.
func (m *Manager) List(ctx context.Context, pattern string) ([]string, error) {
	units, err := m.systemd.ListUnitsByPatternsContext(ctx, nil, []string{pattern})
	if err != nil {
		return nil, translate(err, "cannot list units %s", pattern)
	}
	var names []string
	for _, u := range units {
		if u.LoadState != "not-found" {
			names = append(names, u.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
