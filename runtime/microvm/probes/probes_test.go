package probes

import (
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// TestThereAndBack: nothing of a probe or of its outcome is lost on the way.
func TestThereAndBack(t *testing.T) {
	for name, p := range map[string]probe.Probe{
		"exec": {Exec: []string{"a", "b"}, Timeout: 3 * time.Second},
		"TCP":  {TCP: &probe.TCP{Host: "h", Port: 80}, Timeout: time.Minute},
		"HTTP": {HTTP: &probe.HTTP{Scheme: "https", Host: "h", Port: 443, Path: "/p?q", Headers: []probe.Header{{Name: "A", Value: "1"}, {Name: "A", Value: "2"}}}, Timeout: 20 * time.Millisecond},
	} {
		r := Request("c", p)
		if got := Probe(&r); r.Container != "c" || !reflect.DeepEqual(got, p) {
			t.Errorf("%s: %+v came as %+v", name, p, got)
		}
	}
	if got := Probe(&wire.Probe{}); got.Timeout != time.Second {
		t.Errorf("a probe without a timeout has %s, expected Kubernetes' default, 1s", got.Timeout)
	}
	o := probe.Outcome{Success: true, Code: 200, TimedOut: true, Text: "fine"}
	if got := Outcome(Reply(o)); got != o {
		t.Errorf("%+v came as %+v", o, got)
	}
	long := Reply(probe.Outcome{Text: strings.Repeat("é", wire.MaxMessage)})
	if len(long.Message) > wire.MaxMessage+len("\ufffd") || !utf8.ValidString(long.Message) {
		t.Errorf("a text of %d bytes, valid %t", len(long.Message), utf8.ValidString(long.Message))
	}
}
