package crun

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLastLogError(t *testing.T) {
	for log, want := range map[string]string{
		"": "",
		"{\"msg\":\"first\",\"level\":\"error\",\"time\":\"t\"}\n{\"msg\":\"second\",\"level\":\"error\"}\n":                           "second",
		"{\"level\":\"error\",\"msg\":\"real\"}\n{\"level\":\"warning\",\"msg\":\"later\"}\nnoise\n{\"level\":\"error\",\"msg\":\"\"}": "real",
		`{"timestamp":"t","level":"ERROR","fields":{"message":"youki's"},"target":"x"}`:                                                "youki's",
		`{"level":"error","msg":"cut`: "",
		`[1]`:                         "",
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := LastLogError(path); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
	if got := LastLogError(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("%q", got)
	}
}
