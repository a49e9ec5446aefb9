package probe_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/tests/probetest"
)

func TestProbes(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	probetest.Run(t, probetest.Listen, func(t *testing.T, p probe.Probe) (bool, string, error) {
		outcome, err := p.Make(t.Context(), func(output *os.File) (int, bool, error) {
			return probetest.Command(p.Exec, output, p.Timeout)
		})
		ok, message := p.Verdict(outcome)
		return ok, message, err
	})
}

// TestOutput: of what a command writes the beginning is kept, as it is when it is UTF-8.
func TestOutput(t *testing.T) {
	for _, tt := range []struct{ name, written, want string }{
		{"bytes", "a\xff\x00b", "a\uFFFD\x00b"},
		{"a flood", strings.Repeat("x", 1<<20), strings.Repeat("x", 10<<10)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outcome, err := probe.Probe{Exec: []string{"x"}}.Make(t.Context(), func(output *os.File) (int, bool, error) {
				_, err := output.WriteString(tt.written)
				return 3, false, err
			})
			if err != nil || outcome.Success || outcome.Code != 3 || outcome.Text != tt.want {
				t.Errorf("%v, success %t, code %d, text of %d bytes: %.100q; want a failure with %.100q", err, outcome.Success, outcome.Code, len(outcome.Text), outcome.Text, tt.want)
			}
		})
	}
}

// TestWithoutDescriptors: a probe that cannot be made for want of descriptors says nothing about
// the container.
func TestWithoutDescriptors(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(null.Fd())
	null.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = next
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	questions := []probe.Probe{{TCP: &probe.TCP{Port: 1}}, {HTTP: &probe.HTTP{Port: 1}}, {Exec: []string{"true"}}}
	outcomes, errs := make([]probe.Outcome, len(questions)), make([]error, len(questions))
	for i, p := range questions {
		p.Timeout = time.Minute
		outcomes[i], errs[i] = p.Make(t.Context(), func(*os.File) (int, bool, error) { return 0, false, nil })
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for i := range questions {
		if !errors.Is(errs[i], unix.EMFILE) || outcomes[i] != (probe.Outcome{}) {
			t.Errorf("probe %d: %+v, %v; want no outcome and EMFILE", i, outcomes[i], errs[i])
		}
	}
}
