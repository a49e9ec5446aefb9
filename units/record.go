package units

import (
	"context"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// record is a tracked unit. Only the manager's goroutine (run) writes it once it is in Manager.units.
type record struct {
	state State
	// pending is true while the call that brings the unit into being, or reads it for the first
	// time, is under way: signals are kept until then.
	pending bool
	kept    []*dbus.Signal
	// born is the number of that call's reply: what systemd sent before is about a former life of
	// the unit. seq is the number of the newest message that state was taken from.
	born, seq dbus.Sequence
	// service are the changed properties of the service, until those of the unit, which systemd
	// sends right after them, come.
	service map[string]dbus.Variant

	// active is the state of the unit that the signals brought last (state may be ahead of it after
	// a Refresh).
	active string
	// startJob is the job that has started the unit, 0 when it is not known. ran is true once the
	// unit was seen active.
	startJob uint32
	ran      bool
	// expect is true when a stop of the unit is ours.
	expect bool
}

// live begins the life of a record whose call got its reply. job is systemd's job for the unit.
func (r *record) live(seq dbus.Sequence, s State, job uint32) {
	r.pending = false
	r.born, r.seq = seq, seq
	if s.Active == ActiveActivating || s.Active == ActiveInactive {
		r.startJob = job
	}
	r.judge(&s, job)
	r.state, r.active = s, s.Active
	r.ran = s.Active == ActiveActive
}

// judge corrects a state that systemd has sent: a unit whose start job waits for another unit is
// inactive there, but it has not ended.
func (r *record) judge(s *State, job uint32) {
	if s.Active == ActiveInactive && job != 0 && job == r.startJob {
		s.Active = ActiveActivating
	}
}

// run is the manager's goroutine.
func (m *Manager) run() {
	defer close(m.done)
	for {
		items, ok := m.queue.take()
		if !ok {
			return
		}
		for _, it := range items {
			if it.do != nil {
				it.do()
			} else {
				m.dispatch(it.signal)
			}
		}
	}
}

// do has run call f, after everything that came before, and waits for it; false when the connection
// is lost. Nothing that f calls may call do.
func (m *Manager) do(f func()) bool {
	done := make(chan struct{})
	if !m.queue.add(item{do: func() { f(); close(done) }}) {
		return false
	}
	<-done
	return true
}

// dispatch works on one signal.
func (m *Manager) dispatch(sig *dbus.Signal) {
	switch sig.Name {
	case propsIface + ".PropertiesChanged":
		m.mu.Lock()
		unit, ok := m.paths[sig.Path]
		m.mu.Unlock()
		if ok {
			m.toRecord(unit, sig)
		}
	case managerIface + ".UnitRemoved":
		var unit string
		// In a reload systemd unloads all units, and loads them again.
		if dbus.Store(sig.Body, &unit, new(dbus.ObjectPath)) == nil && strings.HasPrefix(unit, prefix) && !m.reloading {
			m.toRecord(unit, sig)
		}
	case managerIface + ".Reloading":
		var active bool
		if dbus.Store(sig.Body, &active) == nil {
			m.setReloading(active)
		}
	case managerIface + ".JobRemoved":
		var id uint32
		var unit, result string
		if dbus.Store(sig.Body, &id, new(dbus.ObjectPath), &unit, &result) == nil {
			if result != resultDone && strings.HasPrefix(unit, prefix) {
				m.toRecord(unit, sig)
			}
			m.jobRemoved(id, result)
		}
	}
}

// toRecord gives a signal to a tracked unit's record, now or when the record is live.
func (m *Manager) toRecord(unit string, sig *dbus.Signal) {
	m.mu.Lock()
	r := m.units[unit]
	if r == nil || !r.pending && sig.Sequence <= r.born {
		m.mu.Unlock()
		return
	}
	if r.pending {
		r.kept = append(r.kept, sig)
		m.mu.Unlock()
		return
	}
	m.mu.Unlock()
	switch sig.Name {
	case managerIface + ".UnitRemoved":
		m.removed(unit, r, sig)
	case managerIface + ".JobRemoved":
		m.neverStarted(unit, r, sig)
	default:
		m.changed(unit, r, sig)
	}
}

// replay gives a record that has become live the signals that were kept for it.
func (m *Manager) replay(unit string, r *record) {
	kept := r.kept
	r.kept = nil
	for _, sig := range kept {
		m.toRecord(unit, sig)
	}
}

// changed works on PropertiesChanged. systemd announces a service's own properties first and those
// of every unit right after, "clients may rely on this order to get atomic behavior": the second
// makes both count.
func (m *Manager) changed(unit string, r *record, sig *dbus.Signal) {
	var iface string
	var props map[string]dbus.Variant
	if dbus.Store(sig.Body, &iface, &props, new([]string)) != nil {
		return
	}
	if iface == serviceIface {
		r.service = props
		return
	}
	service := r.service
	r.service = nil

	// The stop is judged by the signals alone, whatever a Refresh has seen already.
	var now State
	now.apply(props)
	job := jobOf(props)
	if !r.ran && r.startJob == 0 {
		r.startJob = job
	}
	r.judge(&now, job)
	next := r.state
	if sig.Sequence > r.seq {
		next.apply(service)
		next.apply(props)
		next.Active = now.Active
	}
	stopped := m.stoppedByOthers(r, now, job) && !m.shuttingDown()
	switch {
	case stopped:
		next.StoppedByAdmin = true
	case (State{Active: r.active}).ending() && !now.ending():
		// systemctl restart: another life.
		next.StoppedByAdmin = false
		m.reborn(r, job)
	}
	r.active = now.Active
	r.ran = r.ran || now.Active == ActiveActive
	m.set(unit, r, next, max(sig.Sequence, r.seq))
}

// stoppedByOthers reports whether the change to now is a stop that a job has brought about which is
// not ours. A unit that ends on its own has no job; one whose start fails has the job that started
// it.
func (m *Manager) stoppedByOthers(r *record, now State, job uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !(State{Active: r.active}).ending() && now.ending() && job != 0 && job != r.startJob && !r.expect
}

func (m *Manager) reborn(r *record, job uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.startJob, r.expect = job, false
}

// removed works on UnitRemoved: systemd has unloaded a tracked unit.
func (m *Manager) removed(unit string, r *record, sig *dbus.Signal) {
	if sig.Sequence <= r.seq {
		return
	}
	next := r.state
	next.Load, next.Active, next.Sub, next.MainPID = "not-found", ActiveInactive, "dead", 0
	r.active = next.Active
	m.set(unit, r, next, sig.Sequence)
}

// neverStarted works on JobRemoved of a job that was not done: if it is the start job, and the unit
// was still waiting, the unit does not start.
func (m *Manager) neverStarted(unit string, r *record, sig *dbus.Signal) {
	if id, _ := sig.Body[0].(uint32); id != r.startJob || sig.Sequence <= r.seq || r.state.Active != ActiveActivating || r.state.Sub != "dead" {
		return
	}
	next := r.state
	next.Active = ActiveInactive
	r.active = next.Active
	m.set(unit, r, next, sig.Sequence)
}

// set publishes a state.
func (m *Manager) set(unit string, r *record, next State, seq dbus.Sequence) {
	begins := next.Active == ActiveActive && r.state.Active != ActiveActive
	m.mu.Lock()
	differs := r.state != next
	r.state, r.seq = next, seq
	listeners := m.onChange
	tracked := m.units[unit] == r
	m.mu.Unlock()
	if !differs || !tracked {
		return
	}
	if begins {
		m.follow(unit)
	}
	for _, changed := range listeners {
		(*changed)(unit)
	}
}

// stateTimeout bounds the one question that run asks.
const stateTimeout = 5 * time.Second

// shuttingDown reports whether the host shuts down: then systemd stops units for itself. A lost
// connection means the same.
func (m *Manager) shuttingDown() bool {
	ctx, cancel := context.WithTimeout(context.Background(), stateTimeout)
	defer cancel()
	state, err := m.systemd.SystemStateContext(ctx)
	if err != nil {
		return true
	}
	s, _ := state.Value.Value().(string)
	return s == "stopping"
}

// jobRemoved works on JobRemoved.
func (m *Manager) jobRemoved(id uint32, result string) {
	m.mu.Lock()
	jobs := m.jobs[id]
	delete(m.jobs, id)
	if m.calls.Load() > 0 {
		// It may be the job of a call whose reply has not been looked at yet, also when it is that
		// of another call.
		m.early[id] = result
	} else {
		clear(m.early)
	}
	m.mu.Unlock()
	for _, job := range jobs {
		job.end(result)
	}
}

// register makes the result of a job known to it; on run.
func (m *Manager) register(job *Job) {
	m.mu.Lock()
	result, ended := m.early[job.ID]
	if !ended {
		select {
		case <-m.lost:
			result, ended = resultLost, true
		default:
			m.jobs[job.ID] = append(m.jobs[job.ID], job)
		}
	}
	m.mu.Unlock()
	if ended {
		job.end(result)
	}
}

func (j *Job) end(result string) {
	if result != resultDone && j.undo != nil {
		j.undo()
	}
	j.finish(result)
}

// unitPath is the object path of a unit.
func unitPath(unit string) dbus.ObjectPath {
	return dbus.ObjectPath(unitRoot + sd.PathBusEscape(unit))
}
