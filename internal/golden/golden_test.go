package golden

import (
	"os"
	"path/filepath"
	"testing"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	Write(t, path, []byte("old\n"))
	check := func(got string) bool {
		r := &recorder{TB: t}
		Check(r, path, got)
		return !r.failed
	}
	if !check("old\n") || check("new\n") {
		t.Error("what is the same differs, or the other way round")
	}
	defer func(was bool) { *update = was }(*update)
	*update = true
	if !check("new\n") {
		t.Error("what was just written differs")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "new\n" {
		t.Errorf("the golden file has %q, %v, want what was just written", data, err)
	}
}
