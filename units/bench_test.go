package units

import (
	"fmt"
	"testing"
)

// BenchmarkStart is from StartTransient to the end of the job, for a service that does nothing.
func BenchmarkStart(b *testing.B) {
	m := connect(b)
	n := 0
	for b.Loop() {
		unit := fmt.Sprintf("magikpod-bench-pod-c%d.service", n)
		n++
		mustStart(b, m, unit, []Property{prop("Type", "exec"), prop("Slice", "system.slice"), execStart("/bin/sleep", "1000")})
		b.StopTimer()
		stopAndRelease(b, m, unit)
		b.StartTimer()
	}
}

// BenchmarkRefresh asks systemd for the state of a unit.
func BenchmarkRefresh(b *testing.B) {
	m := connect(b)
	const unit = "magikpod-bench-pod-c.service"
	mustStart(b, m, unit, []Property{prop("Type", "exec"), prop("Slice", "system.slice"), execStart("/bin/sleep", "1000")})
	defer stopAndRelease(b, m, unit)
	for b.Loop() {
		if _, err := m.Refresh(b.Context(), unit); err != nil {
			b.Fatal(err)
		}
	}
}

func stopAndRelease(tb testing.TB, m *Manager, unit string) {
	tb.Helper()
	job, err := m.Stop(tb.Context(), unit)
	if err == nil {
		err = job.Wait(tb.Context())
	}
	if err == nil {
		err = m.Release(tb.Context(), unit)
	}
	if err != nil {
		tb.Fatal(err)
	}
}
