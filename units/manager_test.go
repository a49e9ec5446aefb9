package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// A container's exit code must be known however fast it ends.
func TestExitCodes(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("exit"))
	attempts := 300
	if testing.Short() {
		attempts = 30
	}
	for i := range attempts {
		code := []int{7, 0, 1}[i%3]
		unit, err := s.container(t, "main", nil, "/bin/sh", "-c", fmt.Sprint("exit ", code))
		state := await(t, m, unit, State.MainEnded)
		got, sig := state.ExitCode()
		if got != code || sig != 0 || state.ExecMainCode != codeExited || state.ExecMainExit.IsZero() {
			t.Fatalf("attempt %d: exit code %d, signal %d (job: %v), want %d: %+v", i, got, sig, err, code, state)
		}
		if state.StoppedByAdmin {
			t.Fatalf("attempt %d: stopped by an administrator: %+v", i, state)
		}
		s.restartable(t, unit)
	}
}

// restartable stops and releases a unit, so that it can be started anew.
func (s *sandbox) restartable(t testing.TB, unit string) {
	t.Helper()
	stopAndRelease(t, s.Manager, unit)
	if state, ok := s.State(unit); ok {
		t.Fatalf("a released unit is tracked: %+v", state)
	}
}

func TestLife(t *testing.T) {
	m := connect(t)
	var mu sync.Mutex
	var changes []string
	m.OnChange(func(unit string) {
		s, _ := m.State(unit)
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, unit+" "+s.Active)
	})
	s := startSandbox(t, m, testPod("life"))
	unit, err := s.container(t, "main", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	state, ok := m.State(unit)
	if !ok || state.Active != ActiveActive || state.Sub != "running" || state.MainPID == 0 || state.Ended() || state.MainEnded() {
		t.Errorf("%+v", state)
	}
	var comm []byte
	for deadline := time.Now().Add(time.Minute); string(comm) != "sleep\n"; time.Sleep(10 * time.Millisecond) {
		if comm, err = os.ReadFile(fmt.Sprintf("/proc/%d/comm", state.MainPID)); err != nil || time.Now().After(deadline) {
			t.Fatalf("the main process is %q (%v)", comm, err)
		}
	}
	asked, err := m.Refresh(t.Context(), unit)
	if err != nil || len(asked.InvocationID) != 32 {
		t.Errorf("%+v, %v", asked, err)
	}
	if asked != state {
		t.Errorf("Refresh says %+v, State says %+v", asked, state)
	}
	if cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", state.MainPID)); err != nil || !strings.Contains(string(cgroup), state.ControlGroup) {
		t.Errorf("the process is in %q, want %s (%v)", cgroup, state.ControlGroup, err)
	}
	if list, err := m.List(t.Context(), "magikpod-unitstest-life*.service"); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}

	_, err = m.StartTransient(t.Context(), unit, nil)
	if pod.KindOf(err) != pod.AlreadyExists {
		t.Errorf("second start: %v", err)
	}
	if err := m.Kill(t.Context(), unit, "main", syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	state = await(t, m, unit, State.Ended)
	if code, sig := state.ExitCode(); code != 128+10 || sig != 10 || state.Result != "signal" || state.StoppedByAdmin {
		t.Errorf("%d, %d, %+v", code, sig, state)
	}
	if err := m.Kill(t.Context(), unit, "main", syscall.SIGUSR1); pod.KindOf(err) != pod.NotFound {
		t.Errorf("kill of a dead unit: %v", err)
	}
	if err := m.Kill(t.Context(), "magikpod-no-such-unit.service", "main", syscall.SIGUSR1); pod.KindOf(err) != pod.NotFound {
		t.Errorf("kill of no unit: %v", err)
	}
	job, err := m.Stop(t.Context(), "magikpod-no-such-unit.service")
	if err != nil || job.Wait(t.Context()) != nil {
		t.Errorf("stop of no unit: %v", err)
	}
	if _, err := m.Track(t.Context(), "magikpod-no-such-unit.service"); pod.KindOf(err) != pod.NotFound {
		t.Errorf("track no unit: %v", err)
	}
	s.restartable(t, unit)

	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{s.names.Pause + " active", s.names.Slice + " active", unit + " active", unit + " failed"} {
		if !strings.Contains(strings.Join(changes, "\n")+"\n", want+"\n") {
			t.Errorf("no change %q in\n%s", want, strings.Join(changes, "\n"))
		}
	}
}

func TestStop(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("stop"))
	for _, tt := range []struct {
		name    string
		change  func(*ContainerUnit)
		script  string
		code    int
		atLeast time.Duration
	}{
		{"signal", func(u *ContainerUnit) { u.StopSignal = syscall.SIGUSR2 }, `trap "exit 3" USR2; echo ready; while :; do sleep 0.02; done`, 3, 0},
		{"default signal", nil, `echo ready; exec sleep 1000`, 128 + 15, 0},
		{"grace", func(u *ContainerUnit) { u.Grace = time.Second }, `trap "" TERM; echo ready; while :; do sleep 0.02; done`, 128 + 9, time.Second},
		{"no grace", func(u *ContainerUnit) { u.Grace = 0 }, `trap "" TERM; echo ready; while :; do sleep 0.02; done`, 128 + 9, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := fifo(t)
			unit, err := s.container(t, "main", func(u *ContainerUnit) {
				u.Stdout = r.Name()
				if tt.change != nil {
					tt.change(u)
				}
			}, "/bin/sh", "-c", tt.script)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := r.Read(make([]byte, 100)); n == 0 {
				t.Fatal(err)
			}
			begun := time.Now()
			job, err := m.Stop(t.Context(), unit)
			if err == nil {
				err = job.Wait(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
			state, _ := m.State(unit)
			code, _ := state.ExitCode()
			if code != tt.code || !state.Ended() || state.StoppedByAdmin {
				t.Errorf("exit code %d, want %d: %+v", code, tt.code, state)
			}
			if took := time.Since(begun); took < tt.atLeast {
				t.Errorf("stopped after %s", took)
			}
			if err := m.Release(t.Context(), unit); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a person stops is known from what ends on its own and from what the daemon stops.
func TestStoppedByAdmin(t *testing.T) {
	m := connect(t)
	for _, tt := range []struct {
		name    string
		command func(s *sandbox, unit string) []string
		pause   bool // stopped too
	}{
		{"container", func(_ *sandbox, unit string) []string { return []string{"stop", unit} }, false},
		{"pause", func(s *sandbox, _ string) []string { return []string{"stop", s.names.Pause} }, true},
		{"slice", func(s *sandbox, _ string) []string { return []string{"stop", s.names.Slice} }, true},
		{"namespace", func(s *sandbox, _ string) []string { return []string{"stop", sliceOf(s.names.Slice)} }, true},
		{"everything", func(*sandbox, string) []string { return []string{"stop", "magikpod.slice"} }, true},
	} {
		for _, script := range []string{"exec sleep 1000", "exit 0"} {
			t.Run(tt.name+"/"+script, func(t *testing.T) {
				s := startSandbox(t, m, testPod("admin"))
				unit, err := s.container(t, "main", nil, "/bin/sh", "-c", script)
				if err != nil {
					t.Fatal(err)
				}
				if script == "exit 0" {
					if state := await(t, m, unit, State.MainEnded); state.StoppedByAdmin || state.Ended() {
						t.Errorf("%+v", state)
					}
				}
				systemctl(t, tt.command(s, unit)...)
				if state := await(t, m, unit, State.Ended); !state.StoppedByAdmin {
					t.Errorf("container: %+v", state)
				}
				if !tt.pause {
					if state, _ := m.State(s.names.Pause); state.StoppedByAdmin || state.Ended() {
						t.Errorf("pause: %+v", state)
					}
					return
				}
				if state := await(t, m, s.names.Pause, State.Ended); !state.StoppedByAdmin {
					t.Errorf("pause: %+v", state)
				}
			})
		}
	}
	t.Run("ours", func(t *testing.T) {
		s := startSandbox(t, m, testPod("admin"))
		unit, err := s.container(t, "main", nil, "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		job, err := m.Stop(t.Context(), s.names.Slice)
		if err == nil {
			err = job.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{unit, s.names.Pause} {
			if state := await(t, m, name, State.Ended); state.StoppedByAdmin {
				t.Errorf("%s: %+v", name, state)
			}
		}
	})
	t.Run("expected", func(t *testing.T) {
		s := startSandbox(t, m, testPod("admin"))
		unit, err := s.container(t, "main", nil, "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		m.ExpectStop(s.names.Pause)
		systemctl(t, "stop", s.names.Pause)
		if state := await(t, m, unit, State.Ended); state.StoppedByAdmin {
			t.Errorf("%+v", state)
		}
	})
	t.Run("restart", func(t *testing.T) {
		s := startSandbox(t, m, testPod("admin"))
		before, _ := m.State(s.names.Pause)
		systemctl(t, "restart", s.names.Pause)
		after := await(t, m, s.names.Pause, func(s State) bool { return s.Active == ActiveActive && s.MainPID != before.MainPID })
		if after.StoppedByAdmin {
			t.Errorf("runs again, but: %+v", after)
		}
		if err := m.Kill(t.Context(), s.names.Pause, "main", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if state := await(t, m, s.names.Pause, State.Ended); state.StoppedByAdmin {
			t.Errorf("killed: %+v", state)
		}
	})
}

func systemctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Sidecars stop after the containers that came after them, whoever stops the pod, and each can be
// restarted alone.
func TestStopOrder(t *testing.T) {
	m := connect(t)
	const slow = `trap "sleep 0.3; exit 0" TERM; while :; do sleep 0.02; done`
	for _, stopped := range []string{"slice", "pause"} {
		t.Run(stopped, func(t *testing.T) {
			s := startSandbox(t, m, testPod("order", "one", "two"))
			order := []string{"main", "two", "one"}
			units := map[string]string{}
			for _, name := range order {
				for range 2 { // the second time in the presence of the others, as after a crash
					unit, err := s.container(t, name, nil, "/bin/sh", "-c", slow)
					if err != nil {
						t.Fatal(err)
					}
					if units[name] == "" {
						units[name] = unit
						s.restartable(t, unit)
					}
				}
			}
			systemctl(t, "stop", map[string]string{"slice": s.names.Slice, "pause": s.names.Pause}[stopped])
			var last time.Time
			for _, name := range append(order, "pause") {
				unit := units[name]
				if name == "pause" {
					unit = s.names.Pause
				}
				state := await(t, m, unit, State.Ended)
				if !state.ExecMainExit.After(last) {
					t.Errorf("%s ended at %s, before what must end first (%s)", name, state.ExecMainExit, last)
				}
				last = state.ExecMainExit
			}
		})
	}
}

// A new daemon finds what the old one has left, exit codes included.
func TestRestartOfDaemon(t *testing.T) {
	first := connect(t)
	p := testPod("daemon", "ok", "bad")
	s := &sandbox{Manager: first, pod: p, names: Names(p.Namespace, p.Name)}
	props := PauseProps(PauseUnit{Namespace: p.Namespace, Pod: p.Name, Names: s.names, Argv: helper(t, "sleep")})
	second := connect(t)
	t.Cleanup(func() { s.Manager = second; s.remove(t) })
	mustStart(t, first, s.names.Pause, props, PodSlices(p, PodLimits(p))...)
	units := map[string]string{}
	for name, script := range map[string]string{"main": "exec sleep 1000", "ok": "exit 0", "bad": "exit 5"} {
		unit, _ := s.container(t, name, nil, "/bin/sh", "-c", script)
		units[name] = unit
		await(t, first, unit, func(s State) bool { return name == "main" || s.MainEnded() })
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Lost():
	case <-time.After(time.Minute):
		t.Error("Lost is open after Close")
	}
	if _, err := first.Stop(t.Context(), s.names.Slice); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("stop after Close: %v", err)
	}
	if _, err := first.StartTransient(t.Context(), "magikpod-a-b-c.service", nil); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("start after Close: %v", err)
	}
	if _, err := first.Refresh(t.Context(), s.names.Slice); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("refresh after Close: %v", err)
	}

	// The failed unit gives way to a new attempt, if nobody tracks it; what runs does not.
	running := ContainerProps(ContainerUnit{Pod: p, Container: s.find("main"), Names: s.names, Argv: helper(t, "launch", "sleep", "1000")})
	if _, err := second.StartTransient(t.Context(), units["main"], running); pod.KindOf(err) != pod.AlreadyExists {
		t.Errorf("start of a unit that runs: %v", err)
	}
	for name, wantCode := range map[string]int{"main": 0, "ok": 0, "bad": 5} {
		state, err := second.Track(t.Context(), units[name])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if code, _ := state.ExitCode(); code != wantCode || state.MainEnded() != (name != "main") {
			t.Errorf("%s: exit code %d, want %d: %+v", name, code, wantCode, state)
		}
	}
	s.Manager = second
	s.restartable(t, units["bad"])
	if _, err := s.container(t, "bad", nil, "sleep", "1000"); err != nil {
		t.Error(err)
	}
	systemctl(t, "stop", units["main"])
	if state := await(t, second, units["main"], State.Ended); !state.StoppedByAdmin {
		t.Errorf("%+v", state)
	}
	for _, name := range []string{s.names.Pause, s.names.Slice} {
		if state, err := second.Track(t.Context(), name); err != nil || state.Active != ActiveActive {
			t.Errorf("%s: %+v, %v", name, state, err)
		}
	}
}

// A dead unit that nobody tracks, as a daemon that died before it had released it leaves it, gives way.
func TestDeadUnitGivesWay(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("dead"))
	other := connect(t)
	first := &sandbox{Manager: other, pod: s.pod, names: s.names}
	unit, _ := first.container(t, "main", nil, "/bin/sh", "-c", "exit 5")
	await(t, other, unit, State.Ended)
	other.Close()
	if got, err := s.container(t, "main", nil, "sleep", "1000"); err != nil || got != unit {
		t.Errorf("%s, %v", got, err)
	}
}

// A pod of an earlier daemon whose record is lost, stopped by an administrator, leaves dead and
// failed units. They do not keep its name.
func TestLostPodGivesWay(t *testing.T) {
	old := connect(t)
	p := testPod("lost")
	s := &sandbox{Manager: old, pod: p, names: Names(p.Namespace, p.Name)}
	mustStart(t, old, s.names.Pause, PauseProps(PauseUnit{Namespace: p.Namespace, Pod: p.Name, Names: s.names, Argv: helper(t, "sleep")}), PodSlices(p, PodLimits(p))...)
	if _, err := s.container(t, "main", nil, "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	systemctl(t, "kill", "--signal=KILL", s.names.Pause, ContainerService(s.pod.Namespace, s.pod.Name, "main"))
	systemctl(t, "stop", s.names.Slice)
	startSandbox(t, connect(t), testPod("lost"))
}

// systemd's own reload and reexec change nothing.
func TestReexec(t *testing.T) {
	m := connect(t)
	var over atomic.Bool
	s := startSandbox(t, m, testPod("reexec", "sidecar"))
	unit, err := s.container(t, "main", nil, "/bin/sh", "-c", `[ "$*" = '$HOME ${HOME} %n 100% "a" '"'b' \\ c;" ] && exec sleep 1000; exit 9`, "sh", `$HOME ${HOME} %n 100% "a" 'b' \ c;`)
	if err != nil {
		t.Fatal(err)
	}
	m.OnChange(func(unit string) {
		if state, ok := m.State(unit); ok && state.Ended() && !over.Load() {
			t.Errorf("a unit was reported as ended: %s: %+v", unit, state)
		}
	})
	for _, verb := range []string{"daemon-reload", "daemon-reexec"} {
		before, _ := m.State(unit)
		systemctl(t, verb)
		if after, err := m.Refresh(t.Context(), unit); err != nil || after.MainPID != before.MainPID || after.Load != "loaded" || after.Active != before.Active || after.StoppedByAdmin {
			t.Errorf("%s: %+v, %v; before: %+v", verb, after, err, before)
		}
	}
	time.Sleep(100 * time.Millisecond) // for a signal that would report an end
	over.Store(true)
	if err := m.Kill(t.Context(), unit, "main", syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	state := await(t, m, unit, State.Ended)
	if _, sig := state.ExitCode(); state.StoppedByAdmin || sig != int(syscall.SIGUSR1) {
		t.Errorf("%+v", state)
	}
	s.restartable(t, unit)
	unit, err = s.container(t, "main", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	systemctl(t, "stop", unit)
	if state := await(t, m, unit, State.Ended); !state.StoppedByAdmin {
		t.Errorf("%+v", state)
	}
}

// Many pods at once: no job is missed, and no slice is stopped below a pod.
func TestConcurrent(t *testing.T) {
	m := connect(t)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for range 4 {
				p := testPod(fmt.Sprint("many-", n))
				s := &sandbox{Manager: m, pod: p, names: Names(p.Namespace, p.Name)}
				if err := s.cycle(t); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	noUnits(t, "unitstest")
	m.sweeps.Wait() // the slices are gone before the jobs that have stopped them
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.units)+len(m.paths)+len(m.jobs) > 0 {
		t.Errorf("left: %v, %v, %v", m.units, m.paths, m.jobs)
	}
}

// cycle starts a pod with a container that ends, and removes it.
func (s *sandbox) cycle(t testing.TB) error {
	ctx := context.Background()
	pause, err := s.StartTransient(ctx, s.names.Pause, PauseProps(PauseUnit{Namespace: s.pod.Namespace, Pod: s.pod.Name, Names: s.names, Argv: helper(t, "sleep")}), PodSlices(s.pod, PodLimits(s.pod))...)
	if err != nil {
		return err
	}
	unit := ContainerService(s.pod.Namespace, s.pod.Name, "main")
	c := ContainerUnit{Pod: s.pod, Container: s.find("main"), Names: s.names, Argv: helper(t, "launch", "/bin/sh", "-c", "exit 9"), Grace: time.Second}
	job, err := s.StartTransient(ctx, unit, ContainerProps(c))
	if err != nil {
		return err
	}
	if err := pause.Wait(ctx); err != nil {
		return err
	}
	// Whether the job fails depends on who is faster.
	if err := job.Wait(ctx); err != nil {
		if e, ok := errors.AsType[*JobError](err); !ok || e.Result != "failed" {
			return err
		}
	}
	if code, _ := await(t, s.Manager, unit, State.Ended).ExitCode(); code != 9 {
		return fmt.Errorf("exit code %d", code)
	}
	stop, err := s.Stop(ctx, s.names.Slice)
	if err == nil {
		err = stop.Wait(ctx)
	}
	for _, name := range []string{unit, s.names.Pause, s.names.Slice} {
		err = errors.Join(err, s.Release(ctx, name))
	}
	return err
}

// The end of the connection is noticed, and nothing waits for systemd any more.
func TestLost(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("lost"))

	cut := proxyBus(t)
	through, err := Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer through.Close()
	unit := ContainerService("unitstest", "lost", "main")
	c := ContainerUnit{Pod: s.pod, Container: s.find("main"), Names: s.names, Argv: helper(t, "sleep"), Grace: time.Second}
	job, err := through.StartTransient(t.Context(), unit, ContainerProps(c)) // which never is ready
	if err != nil {
		t.Fatal(err)
	}
	cut()
	err = job.Wait(t.Context())
	if e, ok := errors.AsType[*JobError](err); !ok || e.Result != "lost" || pod.KindOf(err) != pod.Unavailable {
		t.Errorf("job: %v", err)
	}
	select {
	case <-through.Lost():
	case <-time.After(time.Minute):
		t.Error("Lost is open")
	}
	if _, err := through.Refresh(t.Context(), unit); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("refresh: %v", err)
	}
	// The unit lives on, and another connection sees it.
	if state, err := m.Track(t.Context(), unit); err != nil || state.Active != ActiveActivating {
		t.Errorf("%+v, %v", state, err)
	}
}

// proxyBus puts itself between new connections and the system bus, until cut is called.
func proxyBus(t *testing.T) (cut func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	conns := make(chan net.Conn, 100)
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			bus, err := net.Dial("unix", "/run/dbus/system_bus_socket")
			if err != nil {
				client.Close()
				return
			}
			conns <- client
			conns <- bus
			go func() { _, _ = io.Copy(bus, client) }()
			go func() { _, _ = io.Copy(client, bus) }()
		}
	}()
	return func() {
		for {
			select {
			case c := <-conns:
				c.Close()
			default:
				return
			}
		}
	}
}

// A unit that waits for another one has not ended; when that fails, it has.
func TestWaitingStart(t *testing.T) {
	m := connect(t)
	p := testPod("waits")
	s := &sandbox{Manager: m, pod: p, names: Names(p.Namespace, p.Name)}
	t.Cleanup(func() { s.remove(t) })
	// A pause unit that never gets ready.
	pause := PauseProps(PauseUnit{Namespace: p.Namespace, Pod: p.Name, Names: s.names, Argv: helper(t, "sleep"), Notify: true})
	first, err := m.StartTransient(t.Context(), s.names.Pause, pause, PodSlices(p, PodLimits(p))...)
	if err != nil {
		t.Fatal(err)
	}
	unit := s.names.VM
	second, err := m.StartTransient(t.Context(), unit, VMProps(VMUnit{Pod: p, Names: s.names, Argv: helper(t, "sleep")}))
	if err != nil {
		t.Fatal(err)
	}
	await(t, m, s.names.Slice, func(s State) bool { return s.Active == ActiveActive })
	// A change that is announced while the unit waits.
	if err := m.SetProperties(t.Context(), unit, []Property{prop("Description", "waits")}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{unit, s.names.Pause} {
		state, err := m.Refresh(t.Context(), name)
		if cached, _ := m.State(name); err != nil || state.Active != ActiveActivating || state.Ended() || state != cached {
			t.Errorf("%s: %+v, %v; State says %+v", name, state, err, cached)
		}
	}
	if err := m.Kill(t.Context(), s.names.Pause, "main", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for want, job := range map[string]*Job{"failed": first, "dependency": second} {
		err := job.Wait(t.Context())
		if e, ok := errors.AsType[*JobError](err); !ok || e.Result != want {
			t.Errorf("%s: %v, want %s", job.Unit, err, want)
		}
		if state, _ := m.State(job.Unit); !state.Ended() || state.StoppedByAdmin {
			t.Errorf("%s: %+v", job.Unit, state)
		}
	}
}

// Those who stop the same at the same time have one job of systemd's, and all hear of its end.
func TestStopTwice(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("twice"))
	results := make(chan error, 4)
	for range cap(results) {
		go func() {
			job, err := m.Stop(t.Context(), s.names.Slice)
			if err == nil {
				err = job.Wait(t.Context())
			}
			results <- err
		}()
	}
	for range cap(results) {
		select {
		case err := <-results:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("one of those who stop the unit waits for ever")
		}
	}
}

// What systemd calls a limit is what the cgroup has, and can be changed.
func TestLimitsInCgroup(t *testing.T) {
	m := connect(t)
	p := testPod("limits")
	p.Spec.Containers[0].Resources = resources("cpu=1500m memory=64Mi", "cpu=250m memory=32Mi")
	s := startSandbox(t, m, p)
	unit, err := s.container(t, "main", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"MemoryMax": "67108864", "MemoryLow": "33554432", "MemorySwapMax": "0", "CPUQuotaPerSecUSec": "1.500000s", "CPUQuotaPeriodUSec": "100ms", "CPUWeight": "35",
	}
	checkShow(t, unit, want)
	checkShow(t, s.names.Slice, want)
	checkShow(t, s.names.Slice, map[string]string{"TasksMax": "4096"})
	checkShow(t, unit, map[string]string{
		"TasksMax": "infinity", "Type": "notify", "KillMode": "mixed", "OOMPolicy": "kill", "IgnoreSIGPIPE": "no", "DevicePolicy": "closed", "Restart": "no",
		"LimitNOFILESoft": "65536", "TimeoutStopUSec": "30s", "Slice": s.names.Slice, "RemainAfterExit": "yes", "NotifyAccess": "all", "Delegate": "no",
	})
	bigger := Limits{MemoryMax: 128 << 20, TasksMax: 100}
	if err := m.SetProperties(t.Context(), s.names.Slice, bigger.UpdateProps()); err != nil {
		t.Fatal(err)
	}
	checkShow(t, s.names.Slice, map[string]string{
		"MemoryMax": "134217728", "MemoryLow": "0", "MemorySwapMax": "0", "CPUQuotaPerSecUSec": "infinity", "CPUWeight": "[not set]", "TasksMax": "100",
	})
	if err := m.SetProperties(t.Context(), s.names.Slice, []Property{prop("NoSuchProperty", true)}); pod.KindOf(err) != pod.Unsupported {
		t.Errorf("a property that does not exist: %v", err)
	}
	if err := m.SetProperties(t.Context(), "magikpod-no-such-unit.service", bigger.UpdateProps()); pod.KindOf(err) != pod.NotFound {
		t.Errorf("no such unit: %v", err)
	}
	// What the kernel has, where this host has the controllers.
	for file, want := range map[string]string{"memory.max": "134217728", "pids.max": "100", "cpu.max": "max 100000"} {
		data, err := os.ReadFile("/sys/fs/cgroup/" + SlicePath(s.names.Slice) + "/" + file)
		if errors.Is(err, os.ErrNotExist) {
			t.Logf("%s: this host has no such controller", file)
		} else if got := strings.TrimSpace(string(data)); err != nil || got != want {
			t.Errorf("%s is %q, want %q (%v)", file, got, want, err)
		}
	}
}

func checkShow(t *testing.T, unit string, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := systemctl(t, "show", "--value", "-p", name, unit); got != value {
			t.Errorf("%s: %s=%s, want %s", unit, name, got, value)
		}
	}
}
