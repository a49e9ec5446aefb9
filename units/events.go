package units

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
)

// groupEvents reports changes in the cgroup.events of units: they are frozen or thawed, which
// systemd 252 does not report, nor anybody when it is done by a write to the cgroup (cgroup-v2.rst,
// Core Interface Files).
type groupEvents struct {
	file *os.File // inotify(7)

	mu    sync.Mutex
	units map[uint32]string // by watch descriptor
}

func newGroupEvents() (*groupEvents, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &groupEvents{file: os.NewFile(uintptr(fd), "inotify"), units: map[uint32]string{}}, nil
}

// add follows a unit whose cgroup is dir, until that goes. An error is one of a limit of the host's
// (inotify(7)): the unit's next change is seen all the same.
func (g *groupEvents) add(unit, dir string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = rawfd.Use(g.file, func(fd int) error {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY)
		if err == nil {
			g.units[uint32(wd)] = unit
		}
		return err
	})
}

// run calls changed with each unit of which something has changed, until close.
func (g *groupEvents) run(changed func(unit string)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := g.file.Read(buf)
		if err != nil {
			return
		}
		for _, unit := range g.unitsOf(buf[:n]) {
			changed(unit)
		}
	}
}

// unitsOf reads events: wd, mask, cookie and len, four bytes each, and a name.
func (g *groupEvents) unitsOf(events []byte) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []string
	seen := map[string]bool{}
	for len(events) >= unix.SizeofInotifyEvent {
		wd, mask := binary.NativeEndian.Uint32(events), binary.NativeEndian.Uint32(events[4:])
		unit := g.units[wd]
		if mask&unix.IN_IGNORED != 0 { // the cgroup is gone
			delete(g.units, wd)
		} else if unit != "" && !seen[unit] {
			seen[unit] = true
			list = append(list, unit)
		}
		events = events[unix.SizeofInotifyEvent+min(int(binary.NativeEndian.Uint32(events[12:])), len(events)-unix.SizeofInotifyEvent):]
	}
	return list
}

func (g *groupEvents) close() { _ = g.file.Close() }

// follow watches the cgroup of a container or a VM that runs.
func (m *Manager) follow(unit string) {
	if kind := kindOf(unit); kind == kindContainer || kind == kindVM {
		m.events.add(unit, m.CgroupDir(unit))
	}
}

// groupChanged notifies those who listen for a unit of a change that systemd does not report.
func (m *Manager) groupChanged(unit string) {
	m.do(func() {
		m.mu.Lock()
		listeners := m.onChange
		_, tracked := m.units[unit]
		m.mu.Unlock()
		for _, changed := range listeners {
			if tracked {
				(*changed)(unit)
			}
		}
	})
}
