package daemon

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/magikrun/magikpod/pod"
)

func metricsText(m *metricsSet) string {
	var b bytes.Buffer
	m.WritePrometheus(&b)
	return b.String()
}

func TestMetrics(t *testing.T) {
	pods := []pod.Summary{
		{Ref: pod.Ref{Namespace: "default", Name: "web", UID: "u2"}, Phase: "Running", Ready: 1, Total: 2, Restarts: 5},
		{Ref: pod.Ref{Namespace: "default", Name: "job", UID: "u1"}, Phase: "Succeeded", Total: 1},
		{Ref: pod.Ref{Namespace: "prod", Name: "web", UID: "u3"}, Phase: "Running", Ready: 1, Total: 1},
	}
	m := newMetrics(func() []pod.Summary { return pods })
	m.observeJob("run", pod.JobDone, 70*time.Millisecond)
	m.observeJob("run", pod.JobDone, 2*time.Second)
	m.observeJob("delete", pod.JobFailed, time.Hour)
	m.observeStart(300 * time.Millisecond)
	m.observePull(false)
	m.observeRestart()
	m.observeRestart()
	text := metricsText(m)
	for _, line := range []string{
		"# TYPE magikpod_pods gauge",
		`magikpod_pods{phase="Pending"} 0`, `magikpod_pods{phase="Running"} 2`, `magikpod_pods{phase="Succeeded"} 1`, `magikpod_pods{phase="Failed"} 0`,
		`magikpod_pod_containers{namespace="default",pod="web",uid="u2"} 2`,
		`magikpod_pod_containers_ready{namespace="default",pod="web",uid="u2"} 1`,
		`magikpod_pod_restarts_total{namespace="default",pod="web",uid="u2"} 5`,
		`magikpod_pod_restarts_total{namespace="default",pod="job",uid="u1"} 0`,
		"# TYPE magikpod_pod_restarts_total counter",
		"# TYPE magikpod_job_duration_seconds histogram",
		`magikpod_job_duration_seconds_bucket{kind="run",result="done",le="0.05"} 0`,
		`magikpod_job_duration_seconds_bucket{kind="run",result="done",le="0.1"} 1`,
		`magikpod_job_duration_seconds_bucket{kind="run",result="done",le="+Inf"} 2`,
		`magikpod_job_duration_seconds_count{kind="delete",result="failed"} 1`,
		`magikpod_pod_start_duration_seconds_count 1`,
		`magikpod_image_pulls_total{result="done"} 0`, `magikpod_image_pulls_total{result="failed"} 1`,
		`magikpod_container_restarts_total 2`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %q in:\n%.4000s", line, text)
		}
	}
	if strings.Index(text, `pod="job"`) > strings.Index(text, `pod="web"`) {
		t.Error("the pods are not sorted")
	}
	checkPrometheus(t, text)
	pods = nil
	if text := metricsText(m); strings.Contains(text, "magikpod_pod_") && strings.Contains(text, "uid=") || !strings.Contains(text, `magikpod_pods{phase="Running"} 0`) {
		t.Error("pods that are gone are still reported")
	}
}

// checkPrometheus checks the form (Prometheus, exposition_formats): each line, and that each name
// is one block with one TYPE.
func checkPrometheus(t *testing.T, text string) {
	t.Helper()
	sample := regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[a-zA-Z_]\w*="(\\.|[^"\\\n])*"(, ?[a-zA-Z_]\w*="(\\.|[^"\\\n])*")*\})? [-+0-9.eEInfNa]+$`)
	typeLine := regexp.MustCompile(`^# TYPE (\S+) (counter|gauge|histogram|summary|untyped)$`)
	types, seen := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := typeLine.FindStringSubmatch(line); m != nil {
			if types[m[1]] {
				t.Errorf("two TYPE lines for %s", m[1])
			}
			types[m[1]] = true
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		if !sample.MatchString(line) {
			t.Errorf("not a sample: %q", line)
		}
		series, _, _ := strings.Cut(line, "} ")
		if strings.Contains(line, "{") && seen[series] {
			t.Errorf("reported twice: %q", line)
		}
		seen[series] = true
	}
	if !types["magikpod_pods"] {
		t.Error("no TYPE lines")
	}
}

func TestMetricsRace(t *testing.T) {
	m := newMetrics(func() []pod.Summary { return []pod.Summary{{Phase: "Running"}} })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				m.observeJob("run", pod.JobDone, time.Second)
				m.observePull(true)
				m.observeStart(time.Second)
				m.observeRestart()
				metricsText(m)
			}
		})
	}
	wg.Wait()
	if text := metricsText(m); !strings.Contains(text, "magikpod_container_restarts_total 200\n") || !strings.Contains(text, "magikpod_pod_start_duration_seconds_count 200\n") {
		t.Errorf("counts were lost:\n%.3000s", text)
	}
}
