package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

// milestones are what PID 1 and its executors say of a unit at their log level debug (systemd 257),
// in the order of a start.
var milestones = []struct{ says, means string }{
	{"Failed to load configuration: No such file or directory", "PID 1 begins with the unit"}, // a transient unit has no file
	{": Enqueued job", "its job is queued"},
	{": Will spawn child", "its job runs"},
	{": Forked ", "its executor was forked"},
	{": Executing: ", "its executor executes the program"},
	{", READY=1", "READY=1"},
	{"Started ", "it was started"},
	{": Got notification message from PID", "its last notification"},
}

const (
	pauseUnit, containerUnit = "magikpod-default-bench-pause.service", "magikpod-default-bench-main.service"
	asked                    = "member=StartTransientUnit"
)

// TestTimeline writes down where the time of one start goes: when things happen in milliseconds
// after PID 1 has the first StartTransientUnit, as medians of several starts. That PID 1 logs so much
// costs some of that time.
func TestTimeline(t *testing.T) {
	host.IsInside(t, envBench, "make bench-timeline")
	ctx := t.Context()
	happened := map[string]times{}
	for n := range max(3, *pairs/2) {
		at, err := oneStart(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for what, when := range at {
			if n > 0 { // the first one warms up
				happened[what] = append(happened[what], when)
			}
		}
	}
	var whats []string
	for what := range happened {
		whats = append(whats, what)
	}
	slices.SortFunc(whats, func(a, b string) int { return int(happened[a].median() - happened[b].median()) })
	var b strings.Builder
	b.WriteString("| ms | |\n|---|---|\n")
	for _, what := range whats {
		fmt.Fprintf(&b, "| %.1f | %s |\n", float64(happened[what].median())/float64(time.Millisecond), what)
	}
	if err := writePage(t, "performance.md", map[string]string{"timeline": b.String()}); err != nil {
		t.Fatal(err)
	}
}

// oneStart starts a pod while PID 1 logs all it does, and returns when things happened.
func oneStart(ctx context.Context) (map[string]time.Duration, error) {
	defer func() { _ = command(context.WithoutCancel(ctx), "systemd-analyze", "log-level", "info") }()
	if err := command(ctx, "systemd-analyze", "log-level", "debug"); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := command(ctx, "magikpodctl", "run", "-f", one); err != nil {
		return nil, err
	}
	ended := time.Now()
	for _, argv := range [][]string{{"systemd-analyze", "log-level", "info"}, {"magikpodctl", "delete", "bench"}, {"journalctl", "--sync"}} {
		if err := command(ctx, argv...); err != nil {
			return nil, err
		}
	}
	when, err := logged(ctx, began, ended)
	if err != nil {
		return nil, err
	}
	zero, ok := when[asked]
	if !ok {
		return nil, fmt.Errorf("PID 1 has logged no %s", asked)
	}
	delete(when, asked)
	when["`magikpodctl run` begins"], when["`magikpodctl run` has ended"] = began, ended
	at := map[string]time.Duration{}
	for what, t := range when {
		at[what] = t.Sub(zero)
	}
	return at, nil
}

// logged returns when what the journal has of the pod's units happened.
func logged(ctx context.Context, from, to time.Time) (map[string]time.Time, error) {
	out, err := exec.CommandContext(ctx, "journalctl", "--output=json", "--output-fields=MESSAGE,UNIT,_SOURCE_REALTIME_TIMESTAMP", fmt.Sprintf("--since=@%d", from.Unix())).Output()
	if err != nil {
		return nil, err
	}
	when := map[string]time.Time{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); decoder.More(); {
		var line struct {
			Message any    `json:"MESSAGE"` // an array where it is no text
			Unit    string `json:"UNIT"`
			Micros  string `json:"_SOURCE_REALTIME_TIMESTAMP"`
		}
		if err := decoder.Decode(&line); err != nil {
			return nil, fmt.Errorf("journalctl: %w", err)
		}
		micros, err := strconv.ParseInt(line.Micros, 10, 64)
		t := time.UnixMicro(micros)
		if err != nil || t.Before(from) || t.After(to) {
			continue
		}
		text, _ := line.Message.(string)
		if what := milestone(line.Unit, text); what != "" {
			if old, ok := when[what]; !ok || strings.HasSuffix(what, "last notification") || t.Before(old) {
				when[what] = t
			}
		}
	}
	return when, nil
}

// milestone says what a line of the journal means.
func milestone(unit, text string) string {
	who, ok := map[string]string{pauseUnit: "pause: ", containerUnit: "container: "}[unit]
	if !ok {
		if strings.Contains(text, asked) {
			return asked
		}
		return ""
	}
	for _, m := range milestones {
		if strings.Contains(text, m.says) {
			return who + m.means
		}
	}
	return ""
}
