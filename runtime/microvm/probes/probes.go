// Package probes is a probe on its way to the agent in a VM and back: package probe's values in
// those of the protocol, both directions side by side.
//
// It is not in runtime/microvm/client, which magikshim links in every pod: package probe brings
// net/http, half a megabyte of memory.
//
// What does not belong here: how a probe is made (probe), or sent (runtime/microvm/client).
//
// Layer L1: it may import probe, runtime/microvm/wire and internal packages.
package probes

import (
	"strings"
	"time"

	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// Request asks the agent for a probe of a container.
func Request(container string, p probe.Probe) wire.Probe {
	r := wire.Probe{Container: container, Timeout: p.Timeout.Milliseconds(), Exec: p.Exec, TCP: (*wire.TCPProbe)(p.TCP)}
	if h := p.HTTP; h != nil {
		r.HTTP = &wire.HTTPProbe{Scheme: h.Scheme, Host: h.Host, Port: h.Port, Path: h.Path}
		for _, header := range h.Headers {
			r.HTTP.Headers = append(r.HTTP.Headers, wire.Header(header))
		}
	}
	return r
}

// Probe is what a request asks for.
func Probe(r *wire.Probe) probe.Probe {
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

// Reply reports an outcome to the host.
func Reply(o probe.Outcome) wire.ProbeReply {
	message := strings.ToValidUTF8(o.Text[:min(len(o.Text), wire.MaxMessage)], "\ufffd")
	return wire.ProbeReply{Type: "probe", Success: o.Success, Code: o.Code, TimedOut: o.TimedOut, Message: message}
}

// Outcome is what a reply reports.
func Outcome(r wire.ProbeReply) probe.Outcome {
	return probe.Outcome{Success: r.Success, Code: r.Code, TimedOut: r.TimedOut, Text: r.Message}
}
