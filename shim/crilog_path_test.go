package shim

import (
	"os"
	"testing"
)

// TestSetLogPath: an attempt's log file is where it was wanted, but not outside of the log
// directory, and else where CRIPath says.
func TestSetLogPath(t *testing.T) {
	fifos := t.TempDir()
	logs := newCRILogs(&PauseConfig{LogDir: "/logs", FIFODir: fifos})
	for attempt, tc := range []struct{ path, want string }{{"", "/logs/a/0.log"}, {"x/y.log", "/logs/x/y.log"}, {"../y.log", ""}, {"/y.log", ""}} {
		if tc.path != "" {
			if err := SetLogPath(fifos, "a", attempt, tc.path); err != nil {
				t.Fatal(err)
			}
		}
		got, err := logs.path(logName{container: "a", attempt: attempt, stream: Stdout})
		if (err == nil) != (tc.want != "") || err == nil && got != tc.want {
			t.Errorf("%q: %q (%v), want %q", tc.path, got, err, tc.want)
		}
	}
	r, err := newRelay(fifos, newWake(t), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer r.closeAll()
	r.end(logName{container: "a", attempt: 1, stream: streamEnd})
	if _, err := os.Stat(logPathFile(fifos, logName{container: "a", attempt: 1})); !os.IsNotExist(err) {
		t.Errorf("the path of a log that has ended is kept (%v)", err)
	}
}
