package guest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// probe asks whether a container is well. That it is not is no error but an unsuccessful probe.
func (s *Server) probe(ctx context.Context, r *wire.Probe) (any, error) {
	p := question(r)
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
	message := strings.ToValidUTF8(outcome.Text[:min(len(outcome.Text), wire.MaxMessage)], "\ufffd")
	return wire.ProbeReply{Type: "probe", Success: outcome.Success, Code: outcome.Code, TimedOut: outcome.TimedOut, Message: message}, nil
}

// question is a probe as package probe has it.
func question(r *wire.Probe) probe.Probe {
	p := probe.Probe{Exec: r.Exec, TCP: (*probe.TCP)(r.TCP), Timeout: time.Duration(r.Timeout) * time.Millisecond}
	if p.Timeout == 0 {
		p.Timeout = time.Second
	}
	if h := r.HTTP; h != nil {
		p.HTTP = &probe.HTTP{Scheme: h.Scheme, Host: h.Host, Port: h.Port, Path: h.Path}
		for _, header := range h.Headers {
			p.HTTP.Headers = append(p.HTTP.Headers, probe.Header(header))
		}
	}
	return p
}
