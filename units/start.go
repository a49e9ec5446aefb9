package units

import (
	"context"
	"path"
	"strconv"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

// Aux is an auxiliary unit: it is made together with the unit that needs it.
type Aux struct {
	Name  string
	Props []Property
}

const (
	// callTimeout bounds a call to systemd whose outcome must be known.
	callTimeout = time.Minute
	// unloadTimeout bounds the wait for systemd to unload a dead unit of the same name.
	unloadTimeout = 2 * time.Second
)

// StartTransient makes a unit, with its auxiliary units, and starts it; it tracks all of them. It
// returns as soon as systemd has taken the job, and does so also when ctx ends meanwhile, so that the
// caller knows whether there is a unit. AlreadyExists: a unit of that name is tracked, or loaded and
// not dead. A dead one which nobody tracks gives way.
//
// When an error is returned no unit was started; an auxiliary unit may be left, dead, until systemd
// collects it.
func (m *Manager) StartTransient(ctx context.Context, unit string, props []Property, aux ...Aux) (*Job, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, translate(err, "cannot start unit %s", unit)
	}
	if slice := m.frozenSlice(unit); slice != "" {
		// systemd 257 refuses the job, 252 makes a process that does not run.
		return nil, pod.Errorf(pod.Conflict, "cannot start unit %s: %s is frozen (try: systemctl thaw %s)", unit, slice, slice)
	}
	names := []string{unit}
	collections := make([]sd.PropertyCollection, 0, len(aux))
	for _, a := range aux {
		names = append(names, a.Name)
		collections = append(collections, sd.PropertyCollection{Name: a.Name, Properties: a.Props})
	}
	records, err := m.claim(names)
	if err != nil {
		return nil, err
	}
	m.calls.Add(1)
	defer m.calls.Add(-1)
	id, seq, err := m.startCall(ctx, unit, props, collections)
	if err != nil {
		m.unclaim(records)
		return nil, translate(err, "cannot start unit %s", unit)
	}
	job := newJob(id, "start", unit)
	ok := m.do(func() {
		for _, name := range names {
			own := uint32(0) // an auxiliary unit has a job of its own, or none
			if name == unit {
				own = id
			}
			m.mu.Lock()
			records[name].live(seq, records[name].state, own)
			m.mu.Unlock()
		}
		for _, name := range names {
			m.replay(name, records[name])
		}
		m.register(job)
	})
	if !ok {
		m.unclaim(records)
		return nil, pod.Errorf(pod.Unavailable, "cannot start unit %s: the connection to systemd is lost", unit)
	}
	return job, nil
}

// claim makes pending records for units that are not tracked, or are tracked but gone.
func (m *Manager) claim(names []string) (map[string]*record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if r := m.units[name]; r != nil && (r.pending || r.state.Load != "not-found") {
			return nil, pod.Errorf(pod.AlreadyExists, "cannot start unit %s: there is one already", name)
		}
	}
	records := map[string]*record{}
	for _, name := range names {
		r := &record{pending: true, state: State{Load: "loaded", Active: ActiveActivating, Sub: "dead", ControlGroup: cgroupOf(name)}}
		records[name] = r
		m.remember(name, r)
	}
	return records, nil
}

// remember adds a record. It is called with mu held, as are forget and related.
func (m *Manager) remember(name string, r *record) {
	m.units[name] = r
	m.paths[unitPath(name)] = name
	of := podOf(name)
	if m.pods[of] == nil {
		m.pods[of] = map[string]*record{}
	}
	m.pods[of][name] = r
}

// forget removes a record.
func (m *Manager) forget(name string) {
	delete(m.units, name)
	delete(m.paths, unitPath(name))
	of := podOf(name)
	if delete(m.pods[of], name); len(m.pods[of]) == 0 {
		delete(m.pods, of)
	}
}

// related are the records among which are all those that stop with a unit.
func (m *Manager) related(unit string) map[string]*record {
	if of := podOf(unit); strings.Count(of, "-") >= 2 {
		return m.pods[of]
	}
	return m.units
}

// unclaim forgets records.
func (m *Manager) unclaim(records map[string]*record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range records {
		if m.units[name] == r {
			m.forget(name)
		}
	}
}

// startCall calls StartTransientUnit, and again while a dead unit of that name is being unloaded.
// The errors are the bus's.
func (m *Manager) startCall(ctx context.Context, unit string, props []Property, aux []sd.PropertyCollection) (uint32, dbus.Sequence, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	deadline := time.Now().Add(unloadTimeout)
	for pause := time.Millisecond; ; pause *= 2 {
		m.releasing.RLock()
		id, seq, err := m.jobCall(ctx, "StartTransientUnit", unit, "fail", props, aux)
		m.releasing.RUnlock()
		if err == nil || !isError(err, errUnitExists) || time.Now().After(deadline) {
			return id, seq, err
		}
		for _, name := range append([]string{unit}, auxNames(aux)...) {
			if dead, stateErr := m.dead(ctx, name); stateErr != nil || !dead {
				return 0, 0, err
			}
			// A failed unit stays until somebody has taken notice.
			_ = m.systemd.ResetFailedUnitContext(ctx, name)
			m.forgetFailed(ctx, name)
		}
		time.Sleep(pause)
	}
}

// forgetFailed makes systemd forget the failed containers of a pod of which only they are left:
// they keep the dead pause unit loaded.
func (m *Manager) forgetFailed(ctx context.Context, pause string) {
	base, ok := strings.CutSuffix(pause, pauseWord+".service")
	if !ok {
		return
	}
	list, err := m.systemd.ListUnitsByPatternsContext(ctx, []string{ActiveFailed}, []string{base + "*.service"})
	if err != nil {
		return // the next attempt says why
	}
	for _, u := range list {
		if _, tracked := m.State(u.Name); !tracked {
			_ = m.systemd.ResetFailedUnitContext(ctx, u.Name)
		}
	}
}

func auxNames(aux []sd.PropertyCollection) []string {
	var names []string
	for _, a := range aux {
		names = append(names, a.Name)
	}
	return names
}

// dead asks systemd whether nothing of a unit runs. The errors are the bus's.
func (m *Manager) dead(ctx context.Context, units ...string) (bool, error) {
	list, err := m.systemd.ListUnitsByNamesContext(ctx, units)
	if err != nil {
		return false, err
	}
	for _, u := range list {
		if !(State{Active: u.ActiveState}).Ended() {
			return false, nil
		}
	}
	return true, nil
}

// jobCall calls a method of the manager that returns a job.
func (m *Manager) jobCall(ctx context.Context, method string, args ...any) (uint32, dbus.Sequence, error) {
	call := m.object.CallWithContext(ctx, managerIface+"."+method, 0, args...)
	var job dbus.ObjectPath
	if err := call.Store(&job); err != nil {
		return 0, 0, err
	}
	id, err := strconv.ParseUint(path.Base(string(job)), 10, 32)
	return uint32(id), call.ResponseSequence, err
}

// cgroupOf is the cgroup that a unit's name implies, with a leading slash; "" when it implies none.
func cgroupOf(unit string) string {
	if strings.HasSuffix(unit, ".slice") {
		return "/" + SlicePath(unit)
	}
	if slice := sliceOf(unit); slice != "" {
		return "/" + SlicePath(slice) + "/" + unit
	}
	return ""
}

// StartAgain starts a tracked unit that has ended, as it was made. Else it is as StartTransient.
func (m *Manager) StartAgain(ctx context.Context, unit string) (*Job, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, translate(err, "cannot start unit %s", unit)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	job, err := m.queueJob(ctx, "StartUnit", "start", unit, "fail", nil)
	return job, translate(err, "cannot start unit %s", unit)
}

// queueJob calls a method of the manager that returns a job of the unit. undo is called when the job
// does not end well. The errors are the bus's.
func (m *Manager) queueJob(ctx context.Context, method, verb, unit, mode string, undo func()) (*Job, error) {
	m.calls.Add(1)
	defer m.calls.Add(-1)
	id, _, err := m.jobCall(ctx, method, unit, mode)
	if err != nil {
		return nil, err
	}
	job := newJob(id, verb, unit)
	job.undo = undo
	if !m.do(func() { m.register(job) }) {
		return nil, dbus.ErrClosed
	}
	return job, nil
}

// Stop thaws and stops a unit; units that cannot be without it, as those in a slice and those of a
// pause unit, stop too. It returns as soon as systemd has taken the job, and does so also when ctx
// ends meanwhile. No such unit: a job that is done.
func (m *Manager) Stop(ctx context.Context, unit string) (*Job, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, translate(err, "cannot stop unit %s", unit)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := m.Thaw(ctx, unit); err != nil {
		return nil, pod.Errorf(pod.KindOf(err), "cannot stop unit %s: %w", unit, err)
	}
	undo := m.expectStop(unit)
	job, err := m.queueJob(ctx, "StopUnit", "stop", unit, "replace", undo)
	if isError(err, errNoSuchUnit) {
		return doneJob("stop", unit), nil
	}
	if err != nil {
		undo()
		return nil, translate(err, "cannot stop unit %s", unit)
	}
	return job, nil
}

// ExpectStop says that the next stop of a unit, and of what stops with it, is ours and not an
// administrator's. Stop does so by itself.
func (m *Manager) ExpectStop(unit string) { m.expectStop(unit) }

// expectStop marks the unit and all tracked units that stop with it, and returns what takes the new
// marks back.
func (m *Manager) expectStop(unit string) (undo func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var marked []*record
	for name, r := range m.related(unit) {
		if !r.expect && stopsWith(name, unit) {
			r.expect = true
			marked = append(marked, r)
		}
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, r := range marked {
			r.expect = false
		}
	}
}

// stopsWith reports whether a stop of the unit cause stops the unit name too, by what their names
// say: all that is in a slice, all of a pod with its pause unit, and its containers with its VM
// unit.
func stopsWith(name, cause string) bool {
	if name == cause {
		return true
	}
	if slice, ok := strings.CutSuffix(cause, ".slice"); ok {
		return strings.HasPrefix(name, slice+"-")
	}
	if sliceOf(name) != sliceOf(cause) {
		return false
	}
	kind := kindOf(cause)
	return kind == kindPause || kind == kindVM && kindOf(name) == kindContainer
}
