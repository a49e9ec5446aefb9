package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

func tracing(p *corev1.Pod, container int) {
	p.Spec.Containers[container].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}
}

// frozen are the containers of a pod of which a process is frozen.
func (w *world) frozen(p *corev1.Pod) string {
	w.t.Helper()
	s := w.find(pod.RefOf(p))
	var names []string
	for _, name := range s.containerNames() {
		files, err := filepath.Glob(filepath.Join(cgroup.Root(), units.SlicePath(s.names.Slice), s.unit(name), "*/cgroup.events"))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, file := range files {
			events, err := os.ReadFile(file)
			if err == nil && strings.Contains(string(events), "frozen 1\n") && strings.Contains(string(events), "populated 1\n") {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// starve runs do in a process that cannot open a file.
func starve(t *testing.T, do func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	do()
}

// TestFreezeOnlookers: containers with SYS_PTRACE are frozen while a process enters their PID
// namespace, and only they; one enters at a time; and no killed process leaves them so.
func TestFreezeOnlookers(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("frozen", "sleep 1000", "sleep 1000", "sleep 1000")
		share := true
		p.Spec.ShareProcessNamespace = &share
		tracing(p, 0)
		tracing(p, 1)
		w.up(p)
		s := w.find(pod.RefOf(p))
		for _, how := range []string{"", "killed"} {
			thaw, err := w.freezeOnlookers(t.Context(), s, "c", "")
			if err != nil || thaw == nil {
				t.Fatalf("%v", err)
			}
			if got := w.frozen(p); got != "a b" {
				t.Errorf("%q are frozen, want a and b", got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if _, err := w.freezeOnlookers(ctx, s, "c", ""); pod.KindOf(err) != pod.Unavailable {
				t.Errorf("another one enters at the same time: %v", err)
			}
			cancel()
			if how == "killed" {
				killFreezer(t)
			}
			thaw()
			thaw() // does no harm
			if got := w.frozen(p); got != "" {
				t.Errorf("%q are still frozen", got)
			}
		}
		// Who cannot be seen may look on: nobody enters.
		starve(t, func() {
			if thaw, err := w.freezeOnlookers(t.Context(), s, "c", ""); thaw != nil || pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "cannot freeze") {
				t.Errorf("entered unseen: %v", err)
			}
		})
		// A later daemon knows whom to freeze.
		w.nextDaemon(pod.RefOf(p))
		thaw, err := w.freezeOnlookers(t.Context(), w.find(pod.RefOf(p)), "c", "")
		if err != nil || thaw == nil || w.frozen(p) != "a b" {
			t.Fatalf("the next daemon has frozen %q (%v)", w.frozen(p), err)
		}
		thaw()
		// What was thawed can be entered, and goes on.
		for _, name := range []string{"a", "b", "c"} {
			if status, err := w.Exec(t.Context(), pod.RefOf(p), name, shell("exit 7")); err != nil || status.Code != 7 {
				t.Errorf("%s: %+v, %v", name, status, err)
			}
		}
		if got := w.frozen(p); got != "" {
			t.Errorf("after execs %q are frozen", got)
		}
	})
}

// TestFreezeAndStop: to stop, or to delete, does not thaw who is frozen, and SIGKILL ends him all
// the same.
func TestFreezeAndStop(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "", nil)
	p := w.pod("frozenstop", obeys, obeys, "sleep 1000")
	share := true
	p.Spec.ShareProcessNamespace = &share
	tracing(p, 0)
	tracing(p, 1)
	w.up(p)
	w.journal(p, "a", 1) // the trap is set
	w.journal(p, "b", 1)
	s := w.find(pod.RefOf(p))
	thaw, err := w.freezeOnlookers(t.Context(), s, "c", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range w.state(p).Containers {
		if c.Frozen {
			t.Errorf("%s is reported as frozen", name)
		}
	}
	stopped := make(chan error, 1)
	freeze(t, s.unit("b"))                                                                           // by an administrator too
	for name, grace := range map[string]time.Duration{"a": 20 * time.Second, "b": 5 * time.Second} { // by our signals, and by systemd's
		go func() { stopped <- w.StopContainer(t.Context(), pod.RefOf(p), name, grace) }()
	}
	if err := w.config.Units.Thaw(t.Context(), s.names.Slice); err != nil {
		t.Error(err)
	}
	time.Sleep(300 * time.Millisecond)
	if got := w.frozen(p); got != "a b" {
		t.Errorf("%q are frozen, want a and b", got)
	}
	thaw()
	for range 2 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		if c := w.state(p).Containers[name]; c.Stage != pod.ContainerExited || c.ExitCode != 9 {
			t.Errorf("the handler of %s did not run: %+v", name, c)
		}
	}
	if got := w.frozen(p); got != "" {
		t.Errorf("%q are still frozen", got)
	}

	w.run(p, "a", 1)
	if thaw, err = w.freezeOnlookers(t.Context(), s, "c", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Error(err)
	}
	thaw()
}

// TestFreezeAndFailure: when a start does not get there, nobody looks before nothing is left of it.
func TestFreezeAndFailure(t *testing.T) {
	onSystemd(t)
	fails := false
	w := newWorld(t, "", func(step string) error {
		if step == "wait for container" && fails {
			time.Sleep(5 * time.Millisecond) // for launch
			return errors.New("injected")
		}
		return nil
	})
	p := w.pod("heldfail", "sleep 1000", "sleep 1000")
	share := true
	p.Spec.ShareProcessNamespace = &share
	tracing(p, 0)
	w.create(p)
	w.run(p, "a", 0)
	unit := w.config.Units.CgroupDir(w.find(pod.RefOf(p)).unit("b"))
	fails = true
	for attempt := range 5 {
		done := make(chan error, 1)
		go func() { done <- w.RunContainer(context.Background(), w.configOf(p, "b", attempt)) }()
		for over := false; !over; {
			select {
			case err := <-done:
				if over = true; err == nil {
					t.Fatal("the start did not fail")
				}
			default:
				still := w.frozen(p)
				events, _ := os.ReadFile(unit + "/cgroup.events")
				if still == "" && strings.Contains(string(events), "populated 1\n") {
					t.Fatal("a looks while something of b is left")
				}
			}
		}
	}
}

// TestThawLeft: whom an earlier daemon and its helper have left frozen, the next one thaws.
func TestThawLeft(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "", nil)
	p := w.pod("heldleft", "sleep 1000")
	tracing(p, 0)
	w.up(p)
	cgroups, err := w.onlookers(w.find(pod.RefOf(p)), "a", "")
	if err != nil || len(cgroups) == 0 {
		t.Fatalf("%q, %v", cgroups, err)
	}
	for _, cgroup := range cgroups {
		if err := os.WriteFile(cgroup+"/cgroup.freeze", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 500 {
		if w.frozen(p) == "a" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.nextDaemon(pod.RefOf(p))
	for range 500 {
		if w.frozen(p) == "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a is frozen for ever")
}

// TestFreezeNobody: pods that have no container with SYS_PTRACE, or none that sees the process, do
// not wait for anybody.
func TestFreezeNobody(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "", nil)
	p := w.pod("nobody", "sleep 1000", "sleep 1000")
	tracing(p, 0)
	w.up(p)
	s := w.find(pod.RefOf(p))
	for container, want := range map[string]bool{"": false, "a": true, "b": false} {
		thaw, err := w.freezeOnlookers(t.Context(), s, container, "")
		if err != nil || (thaw != nil) != want {
			t.Errorf("%q: it freezes: %t (%v), want %t", container, thaw != nil, err, want)
		}
		if thaw != nil {
			if got := w.frozen(p); got != "a" {
				t.Errorf("%q are frozen, want a", got)
			}
			thaw()
		}
	}
	none := w.pod("none", "sleep 1000")
	share := true
	none.Spec.ShareProcessNamespace = &share
	w.up(none)
	if thaw, err := w.freezeOnlookers(t.Context(), w.find(pod.RefOf(none)), "a", ""); thaw != nil || err != nil {
		t.Errorf("a pod without SYS_PTRACE is frozen (%v)", err)
	}
}

// killFreezer kills the process that keeps others frozen.
func killFreezer(t *testing.T) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(children)) {
			line, _ := os.ReadFile("/proc/" + child + "/cmdline")
			pid, err := strconv.Atoi(child)
			if err == nil && strings.Contains(string(line), "\x00"+shim.FreezeCommand+"\x00") {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Error(err)
				}
				return
			}
		}
	}
	t.Error("nobody freezes")
}
