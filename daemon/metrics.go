package daemon

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/magikrun/magikpod/pod"
)

// metricsPhases are the phases that are always reported, also when there is no such pod.
var metricsPhases = []string{"Pending", "Running", "Succeeded", "Failed", "Unknown"}

// metricsBuckets are the upper bounds of the histograms, in seconds: from the start of a small pod
// to the pull of a large image.
var metricsBuckets = []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900}

// metricsSet is what the daemon counts. Its methods may be called from any goroutine.
type metricsSet struct {
	set  *metrics.Set
	list func() []pod.Summary

	pulled, pullsFailed, restarts *metrics.Counter
	starts                        *metrics.PrometheusHistogram
}

// newMetrics makes a set in which nothing was observed yet. list gives the pods, and is called at
// each write.
func newMetrics(list func() []pod.Summary) *metricsSet {
	metrics.ExposeMetadata(true) // TYPE lines; a switch of the whole process
	set := metrics.NewSet()
	return &metricsSet{
		set: set, list: list,
		pulled:      set.NewCounter(`magikpod_image_pulls_total{result="done"}`),
		pullsFailed: set.NewCounter(`magikpod_image_pulls_total{result="failed"}`),
		restarts:    set.NewCounter("magikpod_container_restarts_total"),
		starts:      set.NewPrometheusHistogramExt("magikpod_pod_start_duration_seconds", metricsBuckets),
	}
}

// observeJob counts a job that has ended after the time took. The kinds are few.
func (m *metricsSet) observeJob(kind string, result pod.JobResult, took time.Duration) {
	name := fmt.Sprintf(`magikpod_job_duration_seconds{kind=%q,result=%q}`, kind, string(result))
	m.set.GetOrCreatePrometheusHistogramExt(name, metricsBuckets).Update(took.Seconds())
}

// observeStart counts a pod all of whose containers have been started for the first time, the time
// took after it was admitted.
func (m *metricsSet) observeStart(took time.Duration) { m.starts.Update(took.Seconds()) }

// observePull counts an image that was asked for at its registry.
func (m *metricsSet) observePull(ok bool) {
	if ok {
		m.pulled.Inc()
	} else {
		m.pullsFailed.Inc()
	}
}

// observeRestart counts a container that was started again.
func (m *metricsSet) observeRestart() { m.restarts.Inc() }

// WritePrometheus writes all metrics in the Prometheus text format, and those of the process and of Go.
func (m *metricsSet) WritePrometheus(w io.Writer) {
	m.writePods(w)
	m.set.WritePrometheus(w)
	metrics.WriteProcessMetrics(w)
}

func (m *metricsSet) writePods(w io.Writer) {
	pods := slices.SortedFunc(slices.Values(m.list()), func(a, b pod.Summary) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	count := map[string]int{}
	for _, p := range pods {
		count[p.Phase]++
	}
	metrics.WriteMetadataIfNeeded(w, "magikpod_pods", "gauge")
	for _, phase := range metricsPhases {
		fmt.Fprintf(w, "magikpod_pods{phase=%q} %d\n", phase, count[phase])
	}
	// The UID makes the restarts of two pods of one name, one after the other, two counters.
	perPod := func(name, kind string, value func(p pod.Summary) int) {
		if len(pods) > 0 {
			metrics.WriteMetadataIfNeeded(w, name, kind)
		}
		for _, p := range pods {
			fmt.Fprintf(w, "%s{namespace=%q,pod=%q,uid=%q} %d\n", name, p.Namespace, p.Name, string(p.UID), value(p))
		}
	}
	perPod("magikpod_pod_containers", "gauge", func(p pod.Summary) int { return p.Total })
	perPod("magikpod_pod_containers_ready", "gauge", func(p pod.Summary) int { return p.Ready })
	perPod("magikpod_pod_restarts_total", "counter", func(p pod.Summary) int { return p.Restarts })
}
