package pod

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the expected traces")

// TestNext runs the cases of testdata/next: a manifest, a script, and the trace that comes out. The script speaks to a simulated world that
// carries out the steps of Next as a runtime would:
//
//	settle                 call Next and carry out its steps until it has none; print them and when it wants to wake
//	exit NAME CODE         the container's process ends
//	after DURATION         time passes; due wake-ups happen
//	probe NAME KIND ok|fail [N]   N results of a probe
//	wish run|stop|delete [GRACE]  the user asks
//	hold NAME              the container does not end when it is stopped, until it is told to exit
//	admin-stop NAME        systemctl stop of the container's unit
//	kill-sandbox           the pause process dies
//	fail NAME REASON       starting the container fails before the runtime is reached; unfail NAME
//	start-error NAME       the runtime cannot start the container
//	reboot                 everything is gone
//	status                 print the status
func TestNext(t *testing.T) {
	files, err := filepath.Glob("testdata/next/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := make(map[string]*txtar.File)
			for i := range archive.Files {
				parts[archive.Files[i].Name] = &archive.Files[i]
			}
			var p corev1.Pod
			if err := yaml.UnmarshalStrict(parts["pod"].Data, &p); err != nil {
				t.Fatal(err)
			}
			got := newWorld(t, &p).script(string(parts["script"].Data))
			if *update {
				parts["want"].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(parts["want"].Data), got); diff != "" {
				t.Errorf("trace (-want +got), rewrite with -update if it is right:\n%s", diff)
			}
		})
	}
}

// world is a simulated runtime, with a clock.
type world struct {
	t       *testing.T
	spec    *corev1.Pod
	seen    Observation
	facts   RuntimeState
	now     time.Time
	held    map[string]bool
	fails   map[string]string
	broken  map[string]bool
	deleted bool
	out     strings.Builder
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(t *testing.T, p *corev1.Pod) *world {
	p.Name, p.Namespace, p.UID = "web", "default", "uid"
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	return &world{
		t: t, spec: p, now: epoch, held: map[string]bool{}, fails: map[string]string{}, broken: map[string]bool{},
		seen:  Observation{Wish: WishRun, WishedAt: epoch, Containers: map[string]ContainerObservation{}},
		facts: RuntimeState{Sandbox: SandboxState{Stage: SandboxAbsent}, Containers: map[string]ContainerState{}},
	}
}

func (w *world) script(text string) string {
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fmt.Fprintf(&w.out, "> %s\n", line)
		w.command(strings.Fields(line))
	}
	return w.out.String()
}

func (w *world) command(f []string) {
	switch f[0] {
	case "settle":
		w.settle()
	case "exit":
		code, _ := strconv.Atoi(f[2])
		w.exit(f[1], code, false)
	case "after":
		w.after(f[1])
	case "probe":
		w.probe(f)
	case "wish":
		w.seen.Wish, w.seen.WishedAt, w.seen.Grace = Wish(f[1]), w.now, nil
		if len(f) > 2 {
			d, _ := time.ParseDuration(f[2])
			w.seen.Grace = &d
		}
		if w.seen.Wish == WishRun {
			Restart(&w.seen.Finished, w.seen.Containers)
		}
	case "hold":
		w.held[f[1]] = true
	case "admin-stop":
		w.exit(f[1], 143, true)
	case "kill-sandbox":
		w.facts.Sandbox = SandboxState{Stage: SandboxDead, Message: "pause was killed"}
	case "fail":
		w.fails[f[1]] = f[2]
	case "unfail":
		delete(w.fails, f[1])
	case "start-error":
		w.broken[f[1]] = true
	case "reboot":
		w.facts = RuntimeState{Sandbox: SandboxState{Stage: SandboxAbsent}, Containers: map[string]ContainerState{}}
	case "status":
		w.status()
	default:
		w.t.Fatalf("unknown command %q", f)
	}
}

func (w *world) exit(name string, code int, admin bool) {
	c, ok := w.facts.Containers[name]
	if !ok || c.Stage == ContainerExited {
		w.t.Fatalf("%s does not run", name)
	}
	c.Stage, c.ExitCode, c.FinishedAt, c.Reason, c.StoppedByAdmin = ContainerExited, code, w.now, ReasonError, admin
	if code == 0 {
		c.Reason = ReasonCompleted
	}
	delete(w.held, name)
	w.facts.Containers[name] = c
}

func (w *world) probe(f []string) {
	n := 1
	if len(f) > 4 {
		n, _ = strconv.Atoi(f[4])
	}
	o := w.seen.Containers[f[1]]
	for range n {
		var c *corev1.Container
		for _, list := range [][]corev1.Container{w.spec.Spec.InitContainers, w.spec.Spec.Containers} {
			for i := range list {
				if list[i].Name == f[1] {
					c = &list[i]
				}
			}
		}
		ok := f[3] == "ok"
		switch ProbeKind(f[2]) {
		case ProbeStartup:
			o.Startup = o.Startup.of(o.Attempt).Record(c.StartupProbe, ok, "no answer", w.now)
		case ProbeLiveness:
			o.Liveness = o.Liveness.of(o.Attempt).Record(c.LivenessProbe, ok, "no answer", w.now)
		case ProbeReadiness:
			o.Readiness = o.Readiness.of(o.Attempt).Record(c.ReadinessProbe, ok, "no answer", w.now)
		}
	}
	w.seen.Containers[f[1]] = o
}

// fold is what the worker does after each look.
func (w *world) fold() {
	for _, list := range [][]corev1.Container{w.spec.Spec.InitContainers, w.spec.Spec.Containers} {
		for i := range list {
			name := list[i].Name
			fact := w.facts.Containers[name]
			if fact.Stage == "" {
				fact.Stage = ContainerAbsent
			}
			w.seen.Containers[name] = w.seen.Containers[name].Observed(fact, w.now, w.seen.Policy)
		}
	}
	w.seen.Sandbox = w.facts.Sandbox
	w.spec.Status = StatusOf(w.spec, w.seen, w.spec.Status, w.now)
}

// next calls Next and checks what must always hold.
func (w *world) next() Plan {
	w.fold()
	before := maps.Clone(w.seen.Containers)
	plan := Next(w.spec, w.seen, w.now)
	if diff := cmp.Diff(plan, Next(w.spec, w.seen, w.now)); diff != "" {
		w.t.Fatalf("Next is not a function:\n%s", diff)
	}
	if diff := cmp.Diff(before, w.seen.Containers); diff != "" {
		w.t.Fatalf("Next changed what it was given:\n%s", diff)
	}
	if !plan.WakeAt.IsZero() && !plan.WakeAt.After(w.now) {
		w.t.Fatalf("Next wants to wake at %s, which has passed", plan.WakeAt.Sub(epoch))
	}
	for _, s := range plan.Steps {
		if s.Op == OpStartContainer && w.seen.Wish != WishRun {
			w.t.Fatalf("%s although the wish is %s", s, w.seen.Wish)
		}
		if s.Op == OpCreateSandbox && w.seen.Sandbox.Stage != SandboxAbsent {
			w.t.Fatalf("a second sandbox: it is %s", w.seen.Sandbox.Stage)
		}
	}
	return plan
}

func (w *world) settle() {
	for range 50 {
		if w.deleted {
			return
		}
		plan := w.next()
		if len(plan.Steps) == 0 {
			w.tellRest(plan)
			return
		}
		progress := false
		for _, s := range plan.Steps {
			fmt.Fprintf(&w.out, "%s\n", s)
			progress = w.perform(s) || progress
		}
		if !progress {
			return
		}
	}
	w.t.Fatal("Next does not settle")
}

func (w *world) tellRest(plan Plan) {
	var probes []string
	for _, p := range plan.Probes {
		probes = append(probes, p.Container+"/"+string(p.Kind))
	}
	if len(probes) > 0 {
		fmt.Fprintf(&w.out, "probes: %s\n", strings.Join(probes, " "))
	}
	if !plan.WakeAt.IsZero() {
		fmt.Fprintf(&w.out, "wake in %s\n", plan.WakeAt.Sub(w.now))
	}
}

// perform carries out one step; false: it did not change the world.
func (w *world) perform(s Step) bool {
	switch s.Op {
	case OpCreateSandbox:
		w.facts.Sandbox = SandboxState{Stage: SandboxReady}
		w.facts.Containers = map[string]ContainerState{}
		NewSandbox(w.spec, w.seen.Containers)
	case OpStartContainer:
		return w.start(s)
	case OpStopContainer:
		if w.held[s.Container] {
			return false
		}
		w.exit(s.Container, 143, false)
	case OpDeleteSandbox:
		for name, c := range w.facts.Containers {
			if c.Stage != ContainerExited {
				w.exit(name, 143, false)
			}
		}
		w.fold()
		w.facts = RuntimeState{Sandbox: SandboxState{Stage: SandboxAbsent}, Containers: map[string]ContainerState{}}
	case OpFinish:
		w.seen.Finished = true
	case OpDeletePod:
		w.deleted = true
	}
	return true
}

func (w *world) start(s Step) bool {
	if w.facts.Sandbox.Stage != SandboxReady {
		w.t.Fatalf("%s without a sandbox", s)
	}
	if old, ok := w.facts.Containers[s.Container]; ok && old.Stage != ContainerExited {
		w.t.Fatalf("%s although it is %s", s, old.Stage)
	}
	if reason := w.fails[s.Container]; reason != "" {
		o := w.seen.Containers[s.Container]
		failures := 1
		if o.Waiting != nil {
			failures = o.Waiting.Failures + 1
		}
		o.Waiting = &Waiting{Reason: reason, Message: "no such thing", Kind: NotFound, Since: w.now, Failures: failures}
		w.seen.Containers[s.Container] = o
		return true
	}
	c := ContainerState{Stage: ContainerRunning, Attempt: s.Attempt, StartedAt: w.now, ID: fmt.Sprintf("%s-%d", s.Container, s.Attempt)}
	if w.broken[s.Container] {
		c = ContainerState{Stage: ContainerExited, Attempt: s.Attempt, FinishedAt: w.now, ExitCode: 127, Reason: ReasonStartError, Message: "no such program"}
	}
	w.facts.Containers[s.Container] = c
	return true
}

// after lets time pass, from wake-up to wake-up.
func (w *world) after(d string) {
	delta, err := time.ParseDuration(d)
	if err != nil {
		w.t.Fatal(err)
	}
	w.now = w.now.Add(delta)
}

func (w *world) status() {
	w.fold()
	st := w.spec.Status
	fmt.Fprintf(&w.out, "phase %s", st.Phase)
	if st.Reason != "" {
		fmt.Fprintf(&w.out, " (%s)", st.Reason)
	}
	ready, total, restarts := ReadyCount(w.spec)
	fmt.Fprintf(&w.out, ", shown as %s, %d/%d ready, %d restarts, started=%v\n", DisplayState(w.spec, w.seen), ready, total, restarts, Started(w.spec, w.seen))
	if err := StartFailure(w.spec, w.seen); err != nil {
		fmt.Fprintf(&w.out, "  failure (%s): %v\n", KindOf(err), err)
	}
	for _, c := range st.Conditions {
		if c.Status != corev1.ConditionTrue && c.Type != corev1.PodReady {
			fmt.Fprintf(&w.out, "  not %s %s\n", c.Type, c.Reason)
		}
	}
	for _, s := range slices.Concat(st.InitContainerStatuses, st.ContainerStatuses) {
		fmt.Fprintf(&w.out, "  %s: %s ready=%v started=%v restarts=%d", s.Name, stateText(s.State), s.Ready, *s.Started, s.RestartCount)
		if s.LastTerminationState.Terminated != nil {
			fmt.Fprintf(&w.out, " last=%s", stateText(s.LastTerminationState))
		}
		fmt.Fprintln(&w.out)
	}
}

func stateText(s corev1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running since " + s.Running.StartedAt.Sub(epoch).String()
	case s.Terminated != nil:
		return fmt.Sprintf("terminated %d %s", s.Terminated.ExitCode, s.Terminated.Reason)
	case s.Waiting != nil && s.Waiting.Message != "":
		return "waiting " + s.Waiting.Reason + " (" + s.Waiting.Message + ")"
	case s.Waiting != nil:
		return "waiting " + s.Waiting.Reason
	}
	return "nothing"
}

func TestBackoff(t *testing.T) {
	want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 300 * time.Second, 300 * time.Second}
	for failures, d := range want {
		if got := Backoff(Policy{}, failures); got != d {
			t.Errorf("Backoff(%d) = %s, want %s", failures, got, d)
		}
	}
	if got := Backoff(Policy{}, 1_000_000); got != 300*time.Second {
		t.Errorf("Backoff(a million) = %s, want 5m", got)
	}
}

func TestProbeTiming(t *testing.T) {
	probe := &corev1.Probe{InitialDelaySeconds: 5, PeriodSeconds: 3, FailureThreshold: 2, SuccessThreshold: 2}
	var s ProbeState
	if got := s.NextAt(probe, epoch).Sub(epoch); got != 5*time.Second {
		t.Errorf("first run after %s, want 5s", got)
	}
	at := epoch.Add(5 * time.Second)
	s = s.Record(probe, true, "", at)
	if s.Passed || s.NextAt(probe, epoch) != at.Add(3*time.Second) {
		t.Errorf("after one success: %+v", s)
	}
	if s = s.Record(probe, true, "", at); !s.Passed {
		t.Error("two successes do not pass")
	}
	if s = s.Record(probe, false, "no", at); !s.Passed || s.Failed {
		t.Error("one failure counts already")
	}
	if s = s.Record(probe, false, "no", at); s.Passed || !s.Failed || s.Message != "no" {
		t.Errorf("two failures: %+v", s)
	}
}

func TestConditionTimes(t *testing.T) {
	spec := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}}
	seen := Observation{Wish: WishRun, Containers: map[string]ContainerObservation{}}
	first := StatusOf(spec, seen, corev1.PodStatus{}, epoch)
	second := StatusOf(spec, seen, first, epoch.Add(time.Hour))
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("nothing happened, and the status changed:\n%s", diff)
	}
	seen.Sandbox.Stage = SandboxReady
	third := StatusOf(spec, seen, second, epoch.Add(time.Hour))
	if got := third.Conditions[0].LastTransitionTime; !got.Equal(&metav1.Time{Time: epoch.Add(time.Hour)}) {
		t.Errorf("transition at %s, want an hour later", got)
	}
}
