package daemon

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/logs"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// The directories are those that the pause process of the pod writes to and reads from.
func TestLogRequest(t *testing.T) {
	ref := pod.Ref{Namespace: "default", Name: "web", UID: "u1"}
	for driver, dir := range map[shim.LogDriver]string{shim.LogJournal: "", shim.LogFile: "/var/log/pods/default_web_u1"} {
		d := &Daemon{config: Config{LogDriver: driver, LogDir: "/var/log/pods", RunDir: "/run/magikpod"}}
		o := pod.LogOptions{Container: "app", Tail: 3}
		want := logs.Request{LogDir: dir, FIFODir: "/run/magikpod/pods/u1/log", PodUID: "u1", Container: "app", Attempt: 2, Ended: time.Unix(5, 0), Options: o}
		if diff := cmp.Diff(want, d.logRequest(ref, o, 2, time.Unix(5, 0))); diff != "" {
			t.Errorf("request with the log driver %s (-want +got):\n%s", driver, diff)
		}
	}
}
