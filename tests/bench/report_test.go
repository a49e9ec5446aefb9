package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// columns are those that the table compares.
var columns = []string{"magikpodctl", "podman", "magikpod over D-Bus", "floor"}

// rows say what each thing is.
var rows = []struct{ thing, label string }{
	{"start", "start a pod until its container runs"},
	{"exec", "run `true` in it"},
	{"list", "list the pods"},
	{"down", "stop and delete it"},
	{"start of 16 containers", "start a pod of 16 containers"},
	{"down of 16 containers", "stop and delete it"},
	{"start of 50 pods", "start 50 pods of one manifest, a pod"},
	{"down of 50 pods", "stop and delete them, a pod"},
}

// measuredTable has medians with deciles.
func measuredTable(measured results) string {
	var b strings.Builder
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format, args...) }
	p("| ms | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, row := range rows {
		p("| %s |", row.label)
		for _, name := range columns {
			if t := measured[name][row.thing]; len(t) > 0 {
				p(" %v |", t)
			} else {
				p(" |")
			}
		}
		p("\n")
	}
	p("\nRounds: %d, of 16 containers %d, of 50 pods %d.\n", len(measured["podman"]["start"]), len(measured["podman"]["start of 16 containers"]), len(measured["podman"]["start of 50 pods"]))
	return b.String()
}

// target is a promise about one figure.
type target struct {
	what   string
	value  float64
	unit   string
	limit  float64
	atMost bool
}

// targets are those of the issue that asked for them.
func targets(r results, d *dense, few *fewPods) []target {
	const ctl, program = "magikpodctl", "magikpod over D-Bus"
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	list := []target{
		{"start: podman / magikpodctl", r.ratio("start", "podman", ctl), "", 5.5, false},
		{"start: over D-Bus / floor", r.ratio("start", program, "floor"), "", 1.1, true},
	}
	for _, verb := range []string{"start", "exec", "list", "down"} {
		list = append(list, target{"the CLI's own share of " + verb, ms(medianMore(r[program][verb], r[ctl][verb])), " ms", 3, true})
	}
	c := curve(d.list)
	return append(list,
		target{"stop and delete: podman / magikpodctl", r.ratio("down", "podman", ctl), "", 15, false},
		target{"exec: podman / magikpodctl", r.ratio("exec", "podman", ctl), "", 10, false},
		target{"exec: magikpodctl / `crun exec`", r.ratio("exec", ctl, "floor"), "", 1.3, true},
		target{fmt.Sprintf("start of the last of %d pods / the first", d.pods), growth(d.start), "", 1.15, true},
		target{fmt.Sprintf("exec with %d pods / with the first", d.pods), growth(d.exec), "", 1.15, true},
		target{fmt.Sprintf("list of %d pods", d.pods), ms(c[len(c)-1].took), " ms", 15, true},
		target{"start of a pod of 16 containers: podman / magikpodctl", r.ratio("start of 16 containers", "podman", ctl), "", 6, false},
		target{"its stop and delete: podman / magikpodctl", r.ratio("down of 16 containers", "podman", ctl), "", 15, false},
		target{fmt.Sprintf("%d pods deleted at once, a pod", d.pods), ms(d.down), " ms", 12, true},
		target{"50 pods in one manifest: podman / magikpodctl", r.ratio("start of 50 pods", "podman", ctl), "", 6, false},
		target{fmt.Sprintf("daemon restart to the first answer, %d pods", d.pods), ms(d.restart.median()), " ms", 500, true},
		target{fmt.Sprintf("memory of a pod beyond its own processes (podman: %.2f MB)", perPod(few.beside, few.pods)/1000), d.beyond(), " MB", 0.6, true},
	)
}

func targetsTable(list []target) string {
	var b strings.Builder
	b.WriteString("| | measured | target | |\n|---|---|---|---|\n")
	for _, t := range list {
		bound, ok := "at least", t.value >= t.limit
		if t.atMost {
			bound, ok = "at most", t.value <= t.limit
		}
		fmt.Fprintf(&b, "| %s | %.2f%s | %s %g%s | %s |\n", t.what, t.value, t.unit, bound, t.limit, t.unit, met(ok))
	}
	return b.String()
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}

// writePage logs the parts of a page in docs/ that are measured, and with -write puts them in there.
func writePage(t *testing.T, name string, parts map[string]string) error {
	path := filepath.Join("../../docs", name)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	page := string(text)
	for part, content := range parts {
		t.Logf("%s\n\n%s", part, content)
		if page, err = fill(page, part, content); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if !*write {
		return nil
	}
	return os.WriteFile(path, []byte(page), 0o644)
}

// fill puts a part between its marks on a page. The rest is written by hand, and stays.
func fill(page, part, content string) (string, error) {
	begin, end := "<!-- measured: "+part+" -->\n", "<!-- end of "+part+" -->"
	before, rest, ok := strings.Cut(page, begin)
	_, after, ended := strings.Cut(rest, end)
	if !ok || !ended {
		return "", fmt.Errorf("there is no %q before %q", begin, end)
	}
	return before + begin + "\n" + strings.TrimSpace(content) + "\n\n" + end + after, nil
}

func TestPage(t *testing.T) {
	const page = "# By hand\n<!-- measured: a -->\nold\n<!-- end of a -->\nby hand\n<!-- measured: b -->\n<!-- end of b -->\n"
	got, err := fill(page, "a", "new\n")
	if want := strings.Replace(page, "old\n", "\nnew\n\n", 1); err != nil || got != want {
		t.Errorf("fill = %q, %v; want %q", got, err, want)
	}
	if again, err := fill(got, "a", "new"); err != nil || again != got {
		t.Errorf("once more: %q, %v; want %q", again, err, got)
	}
	if _, err := fill(page, "c", ""); err == nil {
		t.Error("a part that the page has no marks for was written")
	}
}

// measuredOn says what it was measured on.
func measuredOn() string {
	return fmt.Sprintf("The host: %s, %d CPUs, load %s; %s; %s; %s.", strings.TrimSpace(first("uname", "-sr")), runtime.NumCPU(), load(),
		first("systemctl", "--version"), first("podman", "--version"), first("crun", "--version"))
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
