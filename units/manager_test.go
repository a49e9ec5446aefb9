package units

import (
	"fmt"
	"testing"
)

// A container's exit code must be known however fast it ends.
func TestExitCodes(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("exit"))
	for i := range 300 {
		code := []int{7, 0, 1}[i%3]
		unit, err := s.container(t, "main", nil, "/bin/sh", "-c", fmt.Sprint("exit ", code))
		state := await(t, m, unit, State.MainEnded)
		got, sig := state.ExitCode()
		if got != code || sig != 0 {
			t.Fatalf("attempt %d: exit code %d, signal %d (job: %v), want %d: %+v", i, got, sig, err, code, state)
		}
		if state.StoppedByAdmin {
			t.Fatalf("attempt %d: stopped by an administrator: %+v", i, state)
		}
		job, err := m.Stop(t.Context(), unit)
		if err == nil {
			err = job.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Release(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
	}
}
