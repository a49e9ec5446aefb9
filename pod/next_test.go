package pod

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/magikrun/magikpod/internal/golden"
)

// TestNext plays the traces in testdata/next. Each is a txtar archive: a comment that explains it,
// the file pod.yaml, the file script with one event a line, and the file want: for each event, the
// plans that follow until nothing is left to do, and how the pod stands then. Events:
//
//	start                      the first look
//	desired run|stop|delete [GRACE]
//	advance DURATION           time passes
//	exit CONTAINER CODE        a container ends
//	oom CONTAINER              the kernel kills it for its memory
//	probe CONTAINER KIND ok|fail [TIMES]
//	image-error CONTAINER N    its next N pulls fail; N = 0: no more do
//	start-error CONTAINER N    its next N starts fail
//	stubborn CONTAINER         from now on it ignores its stop signal
//	graceful CONTAINER         from now on it ends with exit code 0 on its stop signal
//	admin-stop [CONTAINER]     systemctl stop of the unit, or of the slice
//	kill-sandbox               the pause process dies
//	reboot
//	crash N [EVENT...]         the daemon dies after N steps of what follows the event
//	status                     print the container statuses and the conditions
func TestNext(t *testing.T) {
	files, err := filepath.Glob("testdata/next/*.txtar")
	if err != nil || len(files) < 40 {
		t.Fatalf("found %d traces (%v), want at least 40", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { playFile(t, file) })
	}
}

func playFile(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, f := range archive.Files {
		parts[f.Name] = f.Data
	}
	if len(bytes.TrimSpace(archive.Comment)) == 0 {
		t.Error("the trace has no comment that explains it")
	}
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(parts["pod.yaml"], p); err != nil {
		t.Fatal(err)
	}
	p.Name, p.Namespace, p.UID = "p", "default", "uid"
	w := newWorld(p)
	var out strings.Builder
	for line := range strings.Lines(string(parts["script"])) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(&out, "> %s\n", line)
			play(t, w, line, &out)
		}
	}
	for _, v := range w.violations {
		t.Error(v)
	}
	if golden.Updating() {
		archive.Files = archive.Files[:2]
		archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(out.String())})
		golden.Write(t, file, txtar.Format(archive))
		return
	}
	if got, want := out.String(), string(parts["want"]); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// play makes one event happen and lets the world settle.
func play(t *testing.T, w *world, line string, out *strings.Builder) {
	f, limit := append(strings.Fields(line), "", "", "", ""), 0
	if f[0] == "crash" {
		limit, _ = strconv.Atoi(f[1])
		f = append([]string{}, f[2:]...)
	}
	number := func(i, standard int) int {
		if f[i] == "" {
			return standard
		}
		n, err := strconv.Atoi(f[i])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	ok := true
	switch f[0] {
	case "start", "":
	case "desired":
		var grace *time.Duration
		if f[2] != "" {
			d, err := time.ParseDuration(f[2])
			if err != nil {
				t.Fatal(err)
			}
			grace = &d
		}
		w.desired(Desired(f[1]), grace)
	case "advance":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "exit":
		ok = w.exit(f[1], number(2, 0), 0, ReasonError)
	case "oom":
		ok = w.exit(f[1], 137, 9, ReasonOOMKilled)
	case "probe":
		for range number(4, 1) {
			ok = ok && w.probe(f[1], ProbeKind(f[2]), f[3] == "ok")
		}
	case "image-error":
		w.imageErrors[f[1]] = number(2, 1)
	case "start-error":
		w.startErrors[f[1]] = number(2, 1)
	case "stubborn":
		w.stubborn[f[1]] = true
	case "graceful":
		w.graceful[f[1]] = true
	case "admin-stop":
		if f[1] == "" {
			w.killSandbox(true)
		} else {
			ok = w.adminStop(f[1])
		}
	case "kill-sandbox":
		w.killSandbox(false)
	case "reboot":
		w.reboot()
	case "status":
		printStatus(w, out)
		return
	default:
		t.Fatalf("unknown event %q", line)
	}
	if !ok {
		t.Fatalf("%s: cannot happen now", line)
	}
	if (f[0] == "image-error" || f[0] == "start-error" || f[0] == "stubborn" || f[0] == "graceful") && limit == 0 {
		return
	}
	settle(t, w, out, limit)
}

// settle carries out plans until there is nothing to do; limit, when not 0, ends it after so many steps.
func settle(t *testing.T, w *world, out *strings.Builder, limit int) {
	for range 30 {
		w.observe()
		plan := Next(w.pod, w.seen, w.now)
		for i, s := range plan.Steps {
			bullet := "  - "
			if i > 0 {
				bullet = "    "
			}
			fmt.Fprintf(out, "%s%s\n", bullet, s)
			w.carryOut(s)
			if limit--; limit == 0 {
				out.WriteString("  = the daemon died\n")
				return
			}
		}
		if w.deleted {
			out.WriteString("  = deleted\n")
			return
		}
		if len(plan.Steps) == 0 {
			printRest(w, plan, out)
			return
		}
	}
	t.Fatalf("it never comes to rest:\n%s", out)
}

func printRest(w *world, plan Plan, out *strings.Builder) {
	ready, total, restarts := ReadyCount(w.pod, w.seen)
	fmt.Fprintf(out, "  = %s %s %d/%d restarts=%d", w.pod.Status.Phase, DisplayState(w.pod, w.seen), ready, total, restarts)
	if !plan.WakeAt.IsZero() {
		fmt.Fprintf(out, " wake=+%s", plan.WakeAt.Sub(w.now))
	}
	for _, ref := range plan.Probes {
		fmt.Fprintf(out, " probe=%s.%d/%s", ref.Container, ref.Attempt, ref.Kind)
	}
	if Started(w.pod, w.seen) {
		out.WriteString(" started")
	}
	if err := StartFailure(w.pod, w.seen); err != nil {
		fmt.Fprintf(out, "\n    failure: %s: %v", KindOf(err), err)
	}
	out.WriteString("\n")
}

func printStatus(w *world, out *strings.Builder) {
	s := w.pod.Status
	fmt.Fprintf(out, "  %s %s %q qos=%s ip=%s started=+%s\n", s.Phase, s.Reason, s.Message, s.QOSClass, s.PodIP, s.StartTime.Sub(epoch))
	for _, c := range s.Conditions {
		fmt.Fprintf(out, "  %s=%s +%s %s %s\n", c.Type, c.Status, c.LastTransitionTime.Sub(epoch), c.Reason, c.Message)
	}
	for _, c := range append(append([]corev1.ContainerStatus{}, s.InitContainerStatuses...), s.ContainerStatuses...) {
		fmt.Fprintf(out, "  %s: ready=%t started=%t restarts=%d id=%s\n    state: %s\n", c.Name, c.Ready, *c.Started, c.RestartCount, c.ContainerID, stateText(c.State))
		if last := stateText(c.LastTerminationState); last != "none" {
			fmt.Fprintf(out, "    last: %s\n", last)
		}
	}
}

func stateText(s corev1.ContainerState) string {
	switch {
	case s.Waiting != nil:
		return strings.TrimSpace("waiting " + s.Waiting.Reason + " " + s.Waiting.Message)
	case s.Running != nil:
		return "running since +" + s.Running.StartedAt.Sub(epoch).String()
	case s.Terminated != nil:
		return fmt.Sprintf("terminated %s exit=%d signal=%d at +%s %s", s.Terminated.Reason, s.Terminated.ExitCode, s.Terminated.Signal,
			s.Terminated.FinishedAt.Sub(epoch), s.Terminated.ContainerID)
	}
	return "none"
}
