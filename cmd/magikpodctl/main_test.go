package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFullProgram: what needs Kubernetes' types or an engine is done by the full program, in the
// place of this one, wherever it stands; who has it not is told so.
func TestFullProgram(t *testing.T) {
	built := t.TempDir()
	build := exec.Command("go", "build", "-o", built, ".", "../magikpodctl-full")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	installed := t.TempDir()
	link(t, filepath.Join(built, "magikpodctl"), filepath.Join(installed, "bin/magikpodctl"))
	link(t, filepath.Join(built, "magikpodctl-full"), filepath.Join(installed, "libexec/magikpod/magikpodctl-full"))
	alone := t.TempDir()
	link(t, filepath.Join(built, "magikpodctl"), filepath.Join(alone, "magikpodctl"))

	const bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: Web}\nspec: {containers: [{name: c, image: i}]}\n"
	for _, test := range []struct {
		name, program string
		args          []string
		status        int
		output        string
	}{
		{"as built", built + "/magikpodctl", []string{"validate", "-f", "-"}, 7, "error: metadata.name: "},
		{"as installed", installed + "/bin/magikpodctl", []string{"validate", "-f", "-"}, 7, "error: metadata.name: "},
		{"names", installed + "/bin/magikpodctl", []string{"delete", "-f", "-"}, 7, `magikpodctl: cannot use the name "Web"`},
		{"module", installed + "/bin/magikpodctl", []string{"wasm", "run", "-"}, 7, "magikpodctl: cannot run -: it is no WebAssembly\n"},
		{"usage", installed + "/bin/magikpodctl", []string{"wasm", "run", "--memory", "much", "-"}, 2, `magikpodctl: --memory "much" is no amount`},
		{"missing", alone + "/magikpodctl", []string{"validate", "-f", "-"}, 1, "magikpodctl: cannot run magikpodctl-full, which this needs: no such file"},
	} {
		cmd := exec.Command(test.program, test.args...)
		cmd.Stdin = strings.NewReader(bad)
		out, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != test.status || !strings.HasPrefix(string(out), test.output) {
			t.Errorf("%s: %v, want status %d: %s", test.name, err, test.status, out)
		}
	}
}

func link(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(from, to); err != nil {
		t.Fatal(err)
	}
}
