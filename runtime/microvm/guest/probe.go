package guest

import (
	"context"
	"fmt"
	"os"

	"github.com/magikrun/magikpod/runtime/microvm/probes"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// probe asks whether a container is well. That it is not is no error but an unsuccessful probe.
func (s *Server) probe(ctx context.Context, r *wire.Probe) (any, error) {
	p := probes.Probe(r)
	if _, _, err := s.running(r.Container, ""); err != nil {
		return nil, err
	}
	outcome, err := p.Make(ctx, func(output *os.File) (code int, timedOut bool, err error) {
		x, err := s.newExecution(&wire.Exec{Container: r.Container, Args: p.Exec, Timeout: p.Timeout.Milliseconds()}, output)
		if err != nil {
			return 0, false, err
		}
		exit := x.wait(ctx.Done())
		if exit.Error != "" {
			return 0, false, &wire.Error{Code: wire.CodeExecFailed, Message: exit.Error, Exit: exit.Code}
		}
		return exit.Code, exit.TimedOut, nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot probe the container %q: %w", r.Container, err)
	}
	return probes.Reply(outcome), nil
}
