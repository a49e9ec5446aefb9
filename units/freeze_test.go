package units

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/internal/testhang"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
)

// polite ends well when it is asked to, and only then. It writes a line when it can be asked.
var polite = []string{"/bin/sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"}

// Whoever has frozen a pod, its container is asked to end before it is killed, and nothing of the
// pod is left.
func TestStopOfWhatIsFrozen(t *testing.T) {
	m := connect(t)
	freeze := func(name func(s *sandbox) string) func(*testing.T, *sandbox) {
		return func(t *testing.T, s *sandbox) {
			t.Helper()
			if err := m.systemd.FreezeUnit(t.Context(), name(s)); err != nil {
				t.Fatal(err)
			}
		}
	}
	main := func(s *sandbox) string { return ContainerService(s.pod.Namespace, s.pod.Name, "main") }
	write := func(t *testing.T, dir, file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		freeze func(*testing.T, *sandbox)
		thawed bool // the container is not frozen as a whole
	}{
		{"container", freeze(main), false},
		{"pause", freeze(func(s *sandbox) string { return s.names.Pause }), true},
		{"pod", freeze(func(s *sandbox) string { return s.names.Slice }), false},
		{"namespace", freeze(func(s *sandbox) string { return sliceOf(s.names.Slice) }), false},
		{"all", freeze(func(*sandbox) string { return rootSlice }), false},
		{"by hand", func(t *testing.T, s *sandbox) { write(t, m.CgroupDir(main(s)), "cgroup.freeze", "1") }, false},
		{"all by hand", func(t *testing.T, _ *sandbox) { write(t, m.CgroupDir(rootSlice), "cgroup.freeze", "1") }, false},
		{"a part by hand", func(t *testing.T, s *sandbox) {
			// As a privileged container can do it to itself.
			sub := filepath.Join(m.CgroupDir(main(s)), "part")
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			state, _ := m.State(main(s))
			write(t, sub, "cgroup.procs", strconv.Itoa(state.MainPID))
			write(t, sub, "cgroup.freeze", "1")
		}, true},
		{"only for systemd", func(t *testing.T, s *sandbox) {
			freeze(main)(t, s)
			write(t, m.CgroupDir(main(s)), "cgroup.freeze", "0")
		}, true},
	} {
		for _, what := range []string{"slice", "unit"} {
			t.Run(test.name+"/"+what, func(t *testing.T) {
				s := startSandbox(t, m, testPod("frozen"))
				r := fifo(t)
				unit, err := s.container(t, "main", func(u *ContainerUnit) { u.Stdout = r.Name() }, polite...)
				if err != nil {
					t.Fatal(err)
				}
				_ = r.SetReadDeadline(time.Now().Add(30 * time.Second))
				if line, err := bufio.NewReader(r).ReadString('\n'); err != nil {
					t.Fatalf("the container wrote %q: %v; want a line", line, err)
				}
				test.freeze(t, s)
				testutil.Eventually(t, fmt.Sprintf("the unit is thawed: %t", test.thawed), func() bool { return m.Frozen(unit) != test.thawed })
				stopped := s.names.Slice
				if what == "unit" {
					stopped = unit
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // the grace period is 30 s
				defer cancel()
				if err := m.End(ctx, stopped); err != nil {
					t.Fatal(err)
				}
				state, _ := m.State(unit)
				if code, _ := state.ExitCode(); !state.Ended() || code != 3 {
					t.Errorf("the container ended with %d: %+v", code, state)
				}
				if _, err := os.Stat(m.CgroupDir(unit)); err == nil {
					t.Error("the cgroup of the container is left")
				}
			})
		}
	}
}

// Who listens hears that a container was frozen and thawed, whoever has done it.
func TestFreezingIsReported(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("reported"))
	unit, err := s.container(t, "main", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	again, err := Connect(t.Context()) // as a daemon that comes later
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Track(t.Context(), unit); err != nil {
		t.Fatal(err)
	}
	for name, manager := range map[string]*Manager{"the one that has started it": m, "a later one": again} {
		frozen := make(chan bool, 100)
		remove := manager.OnChange(func(u string) {
			if u == unit {
				frozen <- manager.Frozen(unit)
			}
		})
		heard := func(want bool, how string) {
			t.Helper()
			for {
				select {
				case got := <-frozen:
					if got == want {
						return
					}
				case <-time.After(30 * time.Second):
					t.Fatalf("%s has not heard of a container: %s", name, how)
				}
			}
		}
		if err := m.systemd.FreezeUnit(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
		heard(true, "systemctl freeze")
		if err := m.systemd.ThawUnit(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
		heard(false, "systemctl thaw")
		for _, value := range []string{"1", "0"} {
			if err := os.WriteFile(filepath.Join(m.CgroupDir(unit), "cgroup.freeze"), []byte(value), 0); err != nil {
				t.Fatal(err)
			}
			heard(value == "1", "a write of "+value)
		}
		remove()
	}
}

// In a frozen slice nothing is started, and nothing is thawed for it.
func TestStartInFrozenSlice(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("frozenstart"))
	if err := m.systemd.FreezeUnit(t.Context(), s.names.Slice); err != nil {
		t.Fatal(err)
	}
	_, err := s.container(t, "main", nil, polite...)
	if pod.KindOf(err) != pod.Conflict || !strings.Contains(err.Error(), s.names.Slice+" is frozen") {
		t.Errorf("start in a frozen slice: %v", err)
	}
	if !m.Frozen(s.names.Slice) {
		t.Error("the slice was thawed")
	}
}

// What still runs is reported, and what is in no unit goes.
func TestEmptied(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("emptied"))
	unit, err := s.container(t, "main", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Emptied(t.Context(), s.names.Slice); pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), unit+" is still active") {
		t.Errorf("a slice whose container runs: %v", err)
	}
	stray := filepath.Join(m.CgroupDir(s.names.Slice), "stray")
	if err := os.Mkdir(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	state, _ := m.State(unit)
	if err := os.WriteFile(filepath.Join(stray, "cgroup.procs"), []byte(strconv.Itoa(state.MainPID)), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.systemd.KillUnitWithTarget(t.Context(), s.names.Pause, "all", int32(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	await(t, m, s.names.Pause, State.Ended)
	stopUnit(t, m, unit)
	stopUnit(t, m, s.names.Slice)
	if err := m.Emptied(t.Context(), s.names.Slice); err != nil {
		t.Error(err)
	}
	if populated, err := cgroup.Event(stray, "populated"); err != nil || populated == "1" && unix.Kill(state.MainPID, 0) == nil {
		t.Errorf("a process of the pod that is in none of its units is left (%v)", err)
	}
	_ = os.Remove(stray)
}

func stopUnit(t *testing.T, m *Manager, unit string) {
	t.Helper()
	job, err := m.Stop(t.Context(), unit)
	if err == nil {
		err = job.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A process that hangs in the kernel outlives SIGKILL. Its unit is over for systemd, but its pod is
// not gone.
func TestProcessThatHangsInTheKernel(t *testing.T) {
	m := connect(t)
	dir, asked, release := testhang.Dir(t)
	s := startSandbox(t, m, testPod("hangs"))
	unit, err := s.container(t, "main", func(u *ContainerUnit) { u.Grace = time.Second }, "/bin/sh", "-c", "read x <"+dir+"/file")
	if err != nil {
		t.Fatal(err)
	}
	state, _ := m.State(unit)
	testutil.Eventually(t, "the hanging file system is asked", asked.Load)
	stopUnit(t, m, s.names.Slice)
	err = m.Emptied(t.Context(), s.names.Slice)
	if pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "it hangs in the kernel") {
		t.Errorf("a slice with a process that hangs: %v; %d is%s", err, state.MainPID, stateOfProcess(strconv.Itoa(state.MainPID)))
	}
	release()
	if err := m.Emptied(t.Context(), s.names.Slice); err != nil {
		t.Error(err)
	}
}

// TestEndAfterARefusal: systemd 257 refuses to stop a unit that it takes for frozen, and has the
// job of its slice succeed all the same. That it does so is known late.
func TestEndAfterARefusal(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("refused"))
	unit, err := s.container(t, "main", nil, polite...)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.systemd.FreezeUnit(t.Context(), unit); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, "the container is frozen", func() bool { return m.Frozen(unit) && (m.frozenBySystemd(unit) || m.Version() < "256") }) // 252 does not report it
	if err := os.WriteFile(filepath.Join(m.CgroupDir(unit), "cgroup.freeze"), []byte("0"), 0); err != nil {                                      // only systemd takes it for frozen
		t.Fatal(err)
	}
	testutil.Eventually(t, "the container runs again", func() bool { return !m.Frozen(unit) })
	m.mu.Lock()
	m.units[unit].state.frozen = false
	m.mu.Unlock()
	if err := m.End(t.Context(), s.names.Slice); err != nil {
		t.Fatal(err)
	}
	if state, _ := m.State(unit); !state.Ended() {
		t.Errorf("the container is still %s", state.Active)
	}
}

// TestEmptiedUnreadable: what cannot be looked at may have processes.
func TestEmptiedUnreadable(t *testing.T) {
	m := &Manager{units: map[string]*record{}}
	slice := Names("unitstest", "emptied").Slice
	if err := m.Emptied(t.Context(), slice); err != nil {
		t.Fatalf("a slice that does not exist: %v", err)
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	err := m.Emptied(t.Context(), slice)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if pod.KindOf(err) != pod.Unavailable {
		t.Errorf("without a descriptor to look with: %v", err)
	}
}
