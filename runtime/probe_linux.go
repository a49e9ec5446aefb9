package runtime

import (
	"context"
	"os"
	"time"

	"github.com/magikrun/magikpod/probe"
)

// MakeProbe makes a probe from this host. exec runs a process in the container.
func MakeProbe(ctx context.Context, p probe.Probe, exec func(Process) (ExitStatus, error)) (ok bool, message string, err error) {
	outcome, err := p.Make(ctx, func(output *os.File) (code int, timedOut bool, err error) {
		begin := time.Now()
		status, err := exec(Process{Args: p.Exec, Stdout: output, Stderr: output, Timeout: p.Timeout})
		if status.Signal != 0 && time.Since(begin) >= p.Timeout { // the error says so too
			return status.Code, true, nil
		}
		return status.Code, false, err
	})
	if err != nil {
		return false, "", err
	}
	ok, message = p.Verdict(outcome)
	return ok, message, nil
}
