package crun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOutcome: an exec ends as its process, also when a signal has killed that, unless it was not
// run at all.
func TestOutcome(t *testing.T) {
	exited := func(code int) unix.WaitStatus { return unix.WaitStatus(code << 8) }
	for name, tc := range map[string]struct {
		status unix.WaitStatus
		log    string
		code   int
		signal int
		reason string
	}{
		"fine":           {exited(0), "", 0, 0, ""},
		"fine, noisy":    {exited(0), "an error", 0, 0, ""},
		"code":           {exited(3), "", 3, 0, ""},
		"killed":         {exited(137), "", 137, 9, ""},
		"the last one":   {exited(128 + 64), "", 128 + 64, 64, ""},
		"a large code":   {exited(200), "", 200, 0, ""},
		"killed with it": {unix.WaitStatus(9), "", 137, 9, ""},
		"not found":      {exited(1), "executable file `/x` not found: No such file or directory", 127, 0, "executable file `/x` not found: No such file or directory"},
		"not executable": {exited(1), "open executable: Permission denied", 126, 0, "open executable: Permission denied"},
	} {
		log := filepath.Join(t.TempDir(), "log")
		if tc.log != "" {
			if err := os.WriteFile(log, []byte(strings.Repeat("x", maxLogBytes)+"\n"+`{"level":"error","msg":"`+tc.log+`"}`+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if code, signal, reason := Outcome(tc.status, log); code != tc.code || signal != tc.signal || reason != tc.reason {
			t.Errorf("%s: code %d, signal %d, reason %q; expected %d, %d, %q", name, code, signal, reason, tc.code, tc.signal, tc.reason)
		}
	}
}
