package netsetup

import (
	"testing"
	"time"
)

func BenchmarkSetup(b *testing.B) {
	for _, tt := range []struct {
		name  string
		ports []Port
	}{{"plain", nil}, {"port", []Port{{HostPort: 8080, Port: 80}}}} {
		b.Run(tt.name, func(b *testing.B) {
			m := newManager(b)
			newPod(b, m, "bystander")
			var up, down, all time.Duration
			for b.Loop() {
				ns, err := NewNamespace()
				if err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				if _, err = m.Setup(b.Context(), PodNetwork{UID: "a", Ports: tt.ports}, ns); err != nil {
					b.Fatal(err)
				}
				done := time.Now()
				if err = m.Teardown(b.Context(), "a"); err != nil {
					b.Fatal(err)
				}
				end := time.Now()
				if err = m.Sweep(b.Context()); err != nil {
					b.Fatal(err)
				}
				up, down, all = up+done.Sub(start), down+end.Sub(done), all+time.Since(end)
				ns.Close()
			}
			for unit, d := range map[string]time.Duration{"us/setup": up, "us/teardown": down, "us/background": all} {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N), unit)
			}
		})
	}
}

func BenchmarkNewNamespace(b *testing.B) {
	needNetwork(b)
	for b.Loop() {
		ns, err := NewNamespace()
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
	}
}
