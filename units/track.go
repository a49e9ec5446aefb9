package units

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

// Refresh asks systemd for the state of a unit, tracked or not, and returns it. For a tracked unit
// it is never older than what State returned before. A unit that is not loaded has Load
// "not-found", and is no error.
func (m *Manager) Refresh(ctx context.Context, unit string) (State, error) {
	props, seq, err := m.read(ctx, unit)
	if err != nil {
		return State{}, translate(err, "cannot read the state of unit %s", unit)
	}
	asked := State{ControlGroup: cgroupOf(unit)}
	asked.apply(props)
	ok := m.do(func() {
		m.mu.Lock()
		r := m.units[unit]
		m.mu.Unlock()
		if r == nil || r.pending || seq <= r.born {
			return
		}
		next := r.state
		if seq > r.seq {
			next.apply(props)
			r.judge(&next, jobOf(props))
		} else {
			next.Load, next.ControlGroup, next.InvocationID = asked.Load, asked.ControlGroup, asked.InvocationID
		}
		m.set(unit, r, next, max(seq, r.seq))
		asked = next
	})
	if !ok {
		return State{}, pod.Errorf(pod.Unavailable, "cannot read the state of unit %s: the connection to systemd is lost", unit)
	}
	return asked, nil
}

// read gets all properties of a unit. The errors are the bus's.
func (m *Manager) read(ctx context.Context, unit string) (map[string]dbus.Variant, dbus.Sequence, error) {
	call := m.conn.Object(busName, unitPath(unit)).CallWithContext(ctx, propsIface+".GetAll", 0, "")
	var props map[string]dbus.Variant
	err := call.Store(&props)
	return props, call.ResponseSequence, err
}

// Track follows a unit that exists, as one that an earlier daemon has started. NotFound: it is not
// loaded. A unit that is tracked already is read again.
func (m *Manager) Track(ctx context.Context, unit string) (State, error) {
	records, err := m.claim([]string{unit})
	if err != nil {
		return m.Refresh(ctx, unit)
	}
	props, seq, err := m.read(ctx, unit)
	if err != nil {
		m.unclaim(records)
		return State{}, translate(err, "cannot track unit %s", unit)
	}
	s := State{ControlGroup: cgroupOf(unit)}
	s.apply(props)
	if s.Load == "not-found" {
		m.unclaim(records)
		return State{}, pod.Errorf(pod.NotFound, "cannot track unit %s: there is none", unit)
	}
	ok := m.do(func() {
		r := records[unit]
		m.mu.Lock()
		r.live(seq, s, jobOf(props))
		m.mu.Unlock()
		m.replay(unit, r)
		s = r.state
	})
	if !ok {
		return State{}, pod.Errorf(pod.Unavailable, "cannot track unit %s: the connection to systemd is lost", unit)
	}
	m.follow(unit)
	return s, nil
}

// Release forgets a unit: systemd unloads it as soon as it is dead. Stop it before, if it runs:
// what runs goes on. With the slice of a pod its ordering slices are forgotten too, and the slice
// of the namespace and magikpod.slice are stopped a while later, or at Close, if nothing is in them
// then. Releasing a unit that does not exist or is not tracked does no harm.
func (m *Manager) Release(ctx context.Context, unit string) error {
	if s, tracked := m.State(unit); !tracked || s.Active != ActiveInactive { // else it has not failed
		if err := m.systemd.ResetFailedUnitContext(ctx, unit); err != nil && !isError(err, errNoSuchUnit) {
			return translate(err, "cannot release unit %s", unit)
		}
	}
	m.mu.Lock()
	for name := range m.related(unit) {
		if name == unit || kindOf(name) == kindOrder && sliceOf(name) == unit {
			m.forget(name)
		}
	}
	m.mu.Unlock()
	if kindOf(unit) == kindPodSlice {
		m.sweepLater(sliceOf(unit))
	}
	return nil
}

// defaultSliceIdle is how long an empty namespace slice stays. To make and stop it for each pod of
// a namespace where pods come and go one at a time would cost some 5 ms a pod.
const defaultSliceIdle = 2 * time.Second

// sweepLater stops the slice of a namespace, and magikpod.slice, if they are empty when m.sliceIdle
// is over.
func (m *Manager) sweepLater(slice string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.idle == nil {
		return
	}
	if t := m.idle[slice]; t != nil {
		t.Reset(m.sliceIdle)
		return
	}
	m.idle[slice] = time.AfterFunc(m.sliceIdle, func() { m.sweep(slice) })
}

// sweep is what sweepLater has put off. An error leaves an empty slice, which does no harm.
func (m *Manager) sweep(slice string) {
	m.mu.Lock()
	if m.idle == nil { // Close does it
		m.mu.Unlock()
		return
	}
	delete(m.idle, slice)
	m.sweeps.Add(1)
	m.mu.Unlock()
	defer m.sweeps.Done()
	m.stopIdle(slice)
}

// stopIdle stops the slice of a namespace, and magikpod.slice after it, while nothing is left in
// them: systemd keeps a slice active that it has once started. No unit is started meanwhile.
func (m *Manager) stopIdle(slice string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	for _, idle := range []string{slice, rootSlice} {
		if m.inUse(idle) {
			return
		}
		m.releasing.Lock()
		stopped, err := m.stopSlice(ctx, idle)
		m.releasing.Unlock()
		if err != nil || !stopped {
			return
		}
	}
}

// Sweep stops the empty slices at once whose stop [Manager.Release] has put off.
func (m *Manager) Sweep() { m.sweepAll(map[string]*time.Timer{}) }

// sweepAll does at once what was put off. next takes what will be put off from now on; nil: nothing
// is any more.
func (m *Manager) sweepAll(next map[string]*time.Timer) {
	m.mu.Lock()
	idle := m.idle
	if idle != nil {
		m.idle = next
	}
	m.mu.Unlock()
	for slice, timer := range idle {
		timer.Stop()
		m.stopIdle(slice)
	}
}

// inUse reports whether a tracked unit lies below a slice.
func (m *Manager) inUse(slice string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	base := strings.TrimSuffix(slice, ".slice") + "-"
	for name, r := range m.units {
		if strings.HasPrefix(name, base) && (r.pending || !r.state.Ended()) {
			return true
		}
	}
	return false
}

// stopSlice stops a slice, unless something in it runs; whoever has put it there.
func (m *Manager) stopSlice(ctx context.Context, slice string) (bool, error) {
	if m.inUse(slice) {
		return false, nil
	}
	members, err := m.systemd.GetUnitPropertyContext(ctx, slice, "RequiredBy")
	if err != nil {
		return false, translate(err, "cannot read what is in %s", slice)
	}
	names, _ := members.Value.Value().([]string)
	names = slices.DeleteFunc(names, func(n string) bool { return n == slice })
	if len(names) > 0 {
		if dead, err := m.dead(ctx, names...); err != nil || !dead {
			return false, translate(err, "cannot read what is in %s", slice)
		}
	}
	job, err := m.Stop(ctx, slice)
	if err != nil {
		return false, err
	}
	return true, job.Wait(ctx)
}
