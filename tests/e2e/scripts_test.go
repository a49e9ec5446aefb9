package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the scripts that can run at the same time.
func TestScripts(t *testing.T) {
	inside(t)
	before, err := world()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // runs after the parallel subtests
		checkLeft(t, world, before)
	})
	run(t, "testdata/*.txtar", false)
}

// TestAlone runs the scripts that need the daemon for themselves, one after the other.
func TestAlone(t *testing.T) {
	inside(t)
	run(t, "testdata/alone/*.txtar", true)
}

func run(t *testing.T, pattern string, alone bool) {
	scripts, err := filepath.Glob(pattern)
	if err != nil || len(scripts) == 0 {
		t.Fatalf("there are no scripts %s: %v", pattern, err)
	}
	scripts = labelled(t, scripts, os.Getenv("MAGIKPOD_LABEL"))
	if len(scripts) == 0 {
		return // the other tests have those of this label
	}
	p := testscript.Params{
		Files: scripts, Cmds: commands(), RequireExplicitExec: true, RequireUniqueNames: true, Condition: condition,
		Setup: func(e *testscript.Env) error { return setup(e, alone) },
	}
	if alone {
		for name, cmd := range aloneCommands() {
			p.Cmds[name] = cmd
		}
	}
	testscript.RunT(scriptT{t, alone}, p)
}

// labelled keeps the scripts that have a line "# Labels: ..." with the label; all, when it is empty.
func labelled(t *testing.T, scripts []string, label string) []string {
	if label == "" {
		return scripts
	}
	return slices.DeleteFunc(scripts, func(path string) bool {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if names, ok := strings.CutPrefix(line, "# Labels:"); ok {
				return !slices.Contains(strings.Fields(names), label)
			}
		}
		return true
	})
}

// setup gives a script its namespace, and looks in the end that nothing of it is left.
func setup(e *testscript.Env, alone bool) error {
	ns := strings.TrimSuffix(filepath.Base(e.WorkDir), ".txtar")
	ns = strings.TrimPrefix(ns, "script-")
	t := e.T().(scriptT)
	e.Setenv("NS", ns)
	e.Setenv("IMAGES", images)
	e.Setenv("BEGAN", strconv.FormatInt(time.Now().Unix(), 10))
	e.Setenv("REGISTRY", registryAddress)
	e.Setenv("HOME", "/root")
	look := ofNamespace(ns)
	before := []string{}
	if alone {
		var err error
		look = world
		if before, err = world(); err != nil {
			return err
		}
		e.Values[worldKey{}] = before
	}
	e.Defer(func() {
		// A script that has failed in the middle may have left pods, and that is not its fault.
		out, err := exec.Command("magikpodctl", "-n", ns, "delete", "--all", "--force").CombinedOutput()
		if err != nil {
			t.Errorf("cannot delete the pods of the script: %v: %s", err, out)
		}
		checkLeft(t.T, look, before)
	})
	return nil
}

// worldKey finds what the world was before a script.
type worldKey struct{}

func checkLeft(t *testing.T, look func() ([]string, error), before []string) {
	t.Helper()
	diff, err := leftovers(look, before)
	if err != nil {
		t.Error(err)
	}
	if diff != "" {
		t.Errorf("something is left, or gone (-before +after):\n%s", diff)
	}
}

// scriptT prints the transcripts of scripts that fail, and only those.
type scriptT struct {
	*testing.T
	alone bool
}

func (t scriptT) Verbose() bool { return false }

func (t scriptT) Parallel() {
	if !t.alone {
		t.T.Parallel()
	}
}

func (t scriptT) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(sub *testing.T) { f(scriptT{sub, t.alone}) })
}
