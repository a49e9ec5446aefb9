package units

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
)

const (
	// thawTimeout bounds how long processes may take to run again.
	thawTimeout = 10 * time.Second
	// refusalTimeout bounds how long systemd may refuse to stop a unit.
	refusalTimeout = 5 * time.Second
	// emptyTimeout bounds how long processes may take to go after SIGKILL.
	emptyTimeout = 5 * time.Second
	// maxBelow is how many cgroups below a unit's own are looked at: a privileged container makes
	// as many as it likes.
	maxBelow = 1024
	// maxNamed is how many processes an error names.
	maxNamed = 5
)

// Frozen reports whether the kernel keeps all processes of a unit frozen, because somebody has
// frozen it or a slice that it is in (systemctl freeze). A unit that has no cgroup is not frozen.
func (m *Manager) Frozen(unit string) bool {
	dir := m.CgroupDir(unit)
	if dir == "" {
		return false
	}
	frozen, err := cgroup.Event(dir, "frozen")
	return err == nil && frozen == "1"
}

// frozenSlice is the innermost slice that a unit would be frozen by; "" when there is none.
func (m *Manager) frozenSlice(unit string) string {
	for slice := sliceOf(unit); slice != ""; slice = sliceOf(slice) {
		if m.Frozen(slice) {
			return slice
		}
	}
	return ""
}

// Thaw has all processes of a unit run again, and of those that stop with it, whoever has frozen
// them: systemd, by an order for the unit or for a slice that it is in, or somebody who wrote to
// the file of the cgroup. The slices that it is in are thawed as a whole: a cgroup cannot run in
// one that does not. Nothing frozen is no error. Unavailable: something is still frozen.
//
// A frozen unit must be thawed before it is stopped: systemd 257 refuses the job and has the job of
// the slice succeed all the same; in systemd 252 a process with a handler for the stop signal does
// not run before its time is over.
func (m *Manager) Thaw(ctx context.Context, unit string) error {
	group := m.CgroupDir(unit)
	bySystemd, frozen := m.frozenBySystemd(unit), m.frozenGroups(group)
	if !bySystemd && len(frozen) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
	defer cancel()
	var failed error
	for _, name := range m.thawOrder(unit) {
		// systemd calls a unit that is not active an error. What counts is what the kernel says below.
		if err := m.systemd.ThawUnit(ctx, name); err != nil && !isError(err, errNoSuchUnit) && !isError(err, errUnitInactive) {
			failed = translate(err, "cannot thaw unit %s", name)
		}
	}
	for _, dir := range m.frozenGroups(group) {
		if err := m.thawGroup(dir); err != nil {
			failed = pod.Errorf(pod.Unavailable, "cannot thaw unit %s: %w", unit, err)
		}
	}
	for {
		frozen, err := cgroup.Event(group, "frozen")
		if err == nil && frozen != "1" {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			switch {
			case failed != nil:
				return failed
			case err != nil:
				return pod.Errorf(pod.Unavailable, "cannot thaw unit %s: %w", unit, err)
			}
			return pod.Errorf(pod.Unavailable, "cannot thaw unit %s: its processes are still frozen after %s", unit, thawTimeout)
		}
	}
}

// KeepFrozen has Thaw leave cgroups alone, directories below [CgroupDir] of a unit, which the
// caller freezes before it calls release. Their processes get signals then, and SIGKILL ends them.
func (m *Manager) KeepFrozen(dirs []string) (release func()) {
	m.keeping.Lock()
	defer m.keeping.Unlock()
	for _, dir := range dirs {
		m.kept[dir]++
	}
	return func() {
		m.keeping.Lock()
		defer m.keeping.Unlock()
		for _, dir := range dirs {
			if m.kept[dir]--; m.kept[dir] == 0 {
				delete(m.kept, dir)
			}
		}
	}
}

// thawGroup thaws a cgroup that nobody wants to keep frozen.
func (m *Manager) thawGroup(dir string) error {
	m.keeping.Lock()
	defer m.keeping.Unlock()
	if m.kept[dir] > 0 {
		return nil
	}
	return cgroup.SetFrozen(dir, false)
}

// frozenBySystemd reports whether systemd has said of the unit, or of one that stops with it, that
// it is frozen.
func (m *Manager) frozenBySystemd(unit string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range m.related(unit) {
		if r.state.frozen && !r.state.Ended() && stopsWith(name, unit) {
			return true
		}
	}
	return false
}

// thawOrder are the units to thaw: the slices that unit is in, the outermost first, then itself,
// then what stops with it.
func (m *Manager) thawOrder(unit string) []string {
	var names []string
	for name := unit; name != "" && name != "-.slice"; name = sliceOf(name) {
		names = append(names, name)
	}
	slices.Reverse(names)
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.related(unit) {
		if name != unit && stopsWith(name, unit) {
			names = append(names, name)
		}
	}
	return names
}

// End stops a unit and what stops with it, and returns when nothing of it is left; see
// [Manager.Emptied].
func (m *Manager) End(ctx context.Context, unit string) error {
	for end := time.Now().Add(refusalTimeout); ; time.Sleep(time.Millisecond) {
		job, err := m.Stop(ctx, unit)
		if err == nil {
			err = job.Wait(ctx)
		}
		if err == nil {
			err = m.Emptied(ctx, unit)
		}
		// A job may have been refused: systemd hears late from the kernel what is frozen. By now
		// Stop may know of it, and thaw it.
		if err == nil || ctx.Err() != nil || len(m.notEnded(unit)) == 0 || time.Now().After(end) {
			return err
		}
	}
}

// Emptied makes sure that nothing of a unit that was stopped is left: neither a unit that stops
// with it, nor a process. Processes that are in none of them any more, such as those that did not
// go when systemd gave them up, are killed. Unavailable: something is left, and the error says
// what.
func (m *Manager) Emptied(ctx context.Context, unit string) error {
	var left []string
	for _, name := range m.notEnded(unit) {
		// The end of one unit's job says nothing of signals about another one that are still to come.
		s, err := m.Refresh(ctx, name)
		if err != nil {
			return err
		}
		if !s.Ended() {
			left = append(left, name+" is still "+s.Active)
		}
	}
	if len(left) > 0 {
		return pod.Errorf(pod.Unavailable, "cannot stop unit %s: %s", unit, strings.Join(left, ", "))
	}
	group := m.CgroupDir(unit)
	if group == "" {
		return nil
	}
	populated, err := cgroup.Event(group, "populated")
	if err == nil && populated == "1" {
		err = cgroup.Kill(group)
	}
	for end := time.Now().Add(emptyTimeout); err == nil && populated == "1"; populated, err = cgroup.Event(group, "populated") {
		if ctx.Err() != nil || time.Now().After(end) {
			return pod.Errorf(pod.Unavailable, "cannot stop unit %s: after SIGKILL there are still %s", unit, processesOf(group))
		}
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot kill what is left of unit %s: %w", unit, err)
	}
	return nil
}

// notEnded are the tracked units that stop with unit and whose end no signal has reported.
func (m *Manager) notEnded(unit string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var left []string
	for name, r := range m.related(unit) {
		if (name == unit || stopsWith(name, unit)) && !r.pending && !r.state.Ended() {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	return left
}

// CgroupDir is the directory of a unit's cgroup; "" when its name implies none.
func (m *Manager) CgroupDir(unit string) string {
	group := cgroupOf(unit)
	if s, ok := m.State(unit); ok && s.ControlGroup != "" {
		group = s.ControlGroup
	}
	if group == "" {
		return ""
	}
	return filepath.Join(cgroup.Root(), path.Clean("/"+group))
}

// frozenGroups are the cgroups that somebody has frozen by name, of dir, those that it is in and
// those below, but for those to keep frozen: the outermost first. None: dir does not exist.
func (m *Manager) frozenGroups(dir string) []string {
	if _, err := os.Stat(dir); dir == "" || err != nil {
		return nil
	}
	var frozen []string
	add := func(dir string) {
		m.keeping.Lock()
		kept := m.kept[dir] > 0
		m.keeping.Unlock()
		if data, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze")); err == nil && !kept && strings.TrimSpace(string(data)) == "1" {
			frozen = append(frozen, dir)
		}
	}
	for up, root := dir, cgroup.Root(); len(up) > len(root); up = filepath.Dir(up) {
		add(up)
	}
	slices.Reverse(frozen)
	seen := 0
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || path == dir {
			return nil // it has just gone
		}
		if seen++; seen > maxBelow {
			return fs.SkipAll
		}
		add(path)
		return nil
	})
	return frozen
}

// processesOf describes the processes in a cgroup and below.
func processesOf(dir string) string {
	var list []string
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return nil
		}
		data, _ := os.ReadFile(path) // it may have just gone
		for pid := range strings.FieldsSeq(string(data)) {
			if n, err := strconv.Atoi(pid); err != nil || n <= 0 {
				continue
			}
			if list = append(list, "process "+pid+stateOfProcess(pid)); len(list) == maxNamed {
				return fs.SkipAll
			}
		}
		return nil
	})
	if len(list) == 0 {
		return "processes"
	}
	return strings.Join(list, ", ")
}

// stateOfProcess is the name and the state of a process, as ps(1) shows them.
func stateOfProcess(pid string) string {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	open, end := strings.IndexByte(string(data), '('), strings.LastIndexByte(string(data), ')')
	if err != nil || open < 0 || end+2 >= len(data) {
		return ""
	}
	state := string(data[end+2 : end+3])
	if state == "D" {
		state += ", it hangs in the kernel"
	}
	return " " + strconv.Quote(string(data[open+1:end])) + " (state " + state + ")"
}
