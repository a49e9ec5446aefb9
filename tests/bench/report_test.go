package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// labels say what each thing is, by contender.
var labels = map[string]string{
	"start": "start a pod until its container runs",
	"exec":  "run `true` in it",
	"list":  "list the pods",
	"down":  "stop and delete it",
}

// target is a promise: the median of slow is at least (or, negative, that of quick is at most)
// factor times the other's.
type target struct {
	thing, quick, slow string
	factor             float64
	atMost             bool
}

var targets = []target{
	{thing: "start", quick: "magikpodctl", slow: "podman", factor: 8},
	{thing: "down", quick: "magikpodctl", slow: "podman", factor: 15},
	{thing: "exec", quick: "magikpodctl", slow: "podman", factor: 5},
	{thing: "start", quick: "floor", slow: "magikpod over D-Bus", factor: 1.4, atMost: true},
}

// report writes the page with the tables.
func report(results map[string]map[string]times) string {
	var b strings.Builder
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format, args...) }
	p("# Performance\n\nWritten by `make bench WRITE=1`: one run, one disposable Debian 13 host, %d alternating rounds, the same pod (one busybox container), its image\n", len(results["podman"]["start"]))
	p("present, podman with its default bridge network. Medians in ms, with the lower and upper decile. Figures are of the host below; ratios count.\n\n")
	names := []string{"magikpodctl", "podman", "magikpod over D-Bus", "floor"}
	p("| | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for _, thing := range things {
		p("| %s |", labels[thing])
		for _, name := range names {
			if t := results[name][thing]; len(t) > 0 {
				p(" %s (%s-%s) |", ms(t.median()), ms(t.quantile(0.1)), ms(t.quantile(0.9)))
			} else {
				p(" |")
			}
		}
		p("\n")
	}
	p("\nmagikpodctl and podman are measured as commands, from start to end; podman's are `kube play`, `exec`, `ps` and `kube down`. The floor is what no design on systemd and\n")
	p("crun can be quicker than: one transient service, made over D-Bus, that runs crun on the same bundle, without any network; `crun exec`.\n\n")
	p("| | ratio | target | |\n|---|---|---|---|\n")
	for _, t := range targets {
		ratio := float64(results[t.slow][t.thing].median()) / float64(results[t.quick][t.thing].median())
		if t.atMost {
			p("| %s: %s / %s | %.2f | at most %.1f | %s |\n", t.thing, t.slow, t.quick, ratio, t.factor, met(ratio <= t.factor))
		} else {
			p("| %s: %s / %s | %.1f | at least %.0f | %s |\n", t.thing, t.slow, t.quick, ratio, t.factor, met(ratio >= t.factor))
		}
	}
	p("\nTwo commits are compared by `make bench-compare BEFORE=REF`: a host for each, rounds alternating, in one run.\n\n%s\n", measuredOn())
	return b.String()
}

// measuredOn says what it was measured on.
func measuredOn() string {
	return fmt.Sprintf("The host: %s, %d CPUs, load %s; %s; %s; %s.", strings.TrimSpace(first("uname", "-sr")), runtime.NumCPU(), load(),
		first("systemctl", "--version"), first("podman", "--version"), first("crun", "--version"))
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}

func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond))
}

// first is the first line of a command's output.
func first(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return argv[0] + "?"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// load is the host's load of the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	load, _, _ := strings.Cut(string(text), " ")
	return load
}
