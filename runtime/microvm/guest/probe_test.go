package guest_test

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime/microvm/probes"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/probetest"
)

// ask has a probe made of a container.
func ask(t *testing.T, m *guesttest.Guest, container string, p probe.Probe) (probe.Outcome, error) {
	t.Helper()
	reply, err := m.Probe(t.Context(), probes.Request(container, p))
	return probes.Outcome(reply), err
}

// TestProbes are run where the container's ports are.
func TestProbes(t *testing.T) {
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "mkdir /www 2>/dev/null || busybox mkdir /www; echo fine > /www/ok; exec httpd -f -p 8080 -h /www"))
	eventually(t, "served", func() bool {
		outcome, err := ask(t, m, "a", probe.Probe{TCP: &probe.TCP{Port: 8080}})
		return err == nil && outcome.Success
	})
	for _, tc := range []struct {
		name    string
		probe   probe.Probe
		success bool
		code    int
		message string
	}{
		{"http", probe.Probe{HTTP: &probe.HTTP{Port: 8080, Path: "/ok"}}, true, 200, "fine"},
		{"http not found", probe.Probe{HTTP: &probe.HTTP{Port: 8080, Path: "none?x=1"}}, false, http.StatusNotFound, "404"},
		{"http refused", probe.Probe{HTTP: &probe.HTTP{Port: 8081}}, false, 0, "connection refused"},
		{"https to http", probe.Probe{HTTP: &probe.HTTP{Scheme: "https", Port: 8080, Path: "/ok"}}, false, 0, ""},
		{"tcp refused", probe.Probe{TCP: &probe.TCP{Port: 8081}}, false, 0, "connection refused"},
		{"exec", probe.Probe{Exec: []string{"sh", "-c", "echo said; echo more >&2"}}, true, 0, "said"},
		{"exec fails", probe.Probe{Exec: []string{"sh", "-c", "exit 3"}}, false, 3, ""},
		{"exec floods", probe.Probe{Exec: []string{"sh", "-c", "yes | head -c 10000000"}, Timeout: host.Patience(20 * time.Second)}, true, 0, "y y y"},
		{"exec hangs", probe.Probe{Exec: []string{"sleep", "1000"}, Timeout: 300 * time.Millisecond}, false, 137, "no end within 300ms"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.probe.Timeout == 0 {
				tc.probe.Timeout = host.Patience(time.Second)
			}
			outcome, err := ask(t, m, "a", tc.probe)
			if err != nil || outcome.Success != tc.success || outcome.Code != tc.code || !strings.Contains(outcome.Text, tc.message) || len(outcome.Text) > wire.MaxMessage {
				t.Errorf("%v %v %d %.200q", err, outcome.Success, outcome.Code, outcome.Text)
			}
		})
	}
	missing := probe.Probe{Exec: []string{"none"}, Timeout: host.Patience(time.Second)}
	if _, err := ask(t, m, "a", missing); wire.CodeOf(err) != wire.CodeExecFailed || !strings.Contains(err.Error(), "none") {
		t.Errorf("the answer for a command that there is not is %v, want %s", err, wire.CodeExecFailed)
	}
	if _, err := ask(t, m, "b", probe.Probe{TCP: &probe.TCP{Port: 1}}); wire.CodeOf(err) != wire.CodeContainerNotFound {
		t.Errorf("%v", err)
	}
}

// TestProbeTable: probes of a VM get the verdicts that those of the host get (package daemon).
func TestProbeTable(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sleep", "100000"))
	listen := func(t *testing.T) (l net.Listener) {
		t.Helper()
		inNetwork(t, m, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
		return l
	}
	probetest.Run(t, listen, func(t *testing.T, p probe.Probe) (bool, string, error) {
		outcome, err := ask(t, m, "a", p)
		ok, message := p.Verdict(outcome)
		return ok, message, err
	})
}
