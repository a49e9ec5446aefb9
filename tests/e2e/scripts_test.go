package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/tests/host"
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
	run(t, containers, "testdata/*.txtar", false)
}

// TestWasm runs those scripts over the class pod-wasm that apply to it, and those that are for it alone.
func TestWasm(t *testing.T) {
	inside(t)
	needModules(t)
	before, err := world()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkLeft(t, world, before) })
	run(t, modules, "testdata/*.txtar", false)
	run(t, class{name: pod.ClassWasm}, "testdata/wasm/*.txtar", false)
}

// TestWasmAlone is TestAlone over the class pod-wasm.
func TestWasmAlone(t *testing.T) {
	inside(t)
	needModules(t)
	run(t, modules, "testdata/alone/*.txtar", true)
}

// needModules has the modules compiled, unless only scripts of a label run, which have small
// modules or none.
func needModules(t *testing.T) {
	t.Helper()
	if os.Getenv("MAGIKPOD_LABEL") != "" {
		return
	}
	if err := compileModules(); err != nil {
		t.Fatal(err)
	}
}

// TestMicroVM runs those scripts over the class pod-microvm-containers that apply to it.
func TestMicroVM(t *testing.T) {
	inside(t)
	needVMs(t)
	before, err := world()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkLeft(t, world, before) })
	run(t, microVMs, "testdata/*.txtar", false)
	run(t, class{name: pod.ClassMicroVM}, "testdata/microvm/*.txtar", false)
}

// TestMicroVMAlone is TestAlone over the class pod-microvm-containers.
func TestMicroVMAlone(t *testing.T) {
	inside(t)
	needVMs(t)
	run(t, microVMs, "testdata/alone/*.txtar", true)
}

// needVMs skips a test where no VM can be run, and says why not.
func needVMs(t *testing.T) {
	t.Helper()
	out, err := exec.Command("magikpodctl", "classes").CombinedOutput()
	if err != nil {
		t.Fatalf("magikpodctl classes: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == pod.ClassMicroVM && fields[1] != "true" {
			t.Skipf("no VM can be run here: %s", line)
		}
	}
}

// TestAlone runs the scripts that need the daemon for themselves, one after the other.
func TestAlone(t *testing.T) {
	inside(t)
	run(t, containers, "testdata/alone/*.txtar", true)
}

// class is a runtime class that scripts run over.
type class struct {
	name string
	// adapt makes a script's manifest one for the class. Nil: it is one.
	adapt func(manifest string) string
	// marked says that only scripts with a line "# over: CLASS CLASS ..." apply in which the class is.
	marked bool
}

var (
	containers = class{name: pod.ClassContainers}
	modules    = class{name: pod.ClassWasm, adapt: forModules, marked: true}
	microVMs   = class{name: pod.ClassMicroVM, adapt: forVMs, marked: true}
)

var (
	podSpec  = regexp.MustCompile(`(?m)^(\s*)spec:( \{|$)`)
	overLine = regexp.MustCompile(`(?m)^# over: (.*)$`)
)

// forModules gives each pod of a manifest the class, and the image that has modules for commands.
func forModules(manifest string) string {
	return ofClass(strings.ReplaceAll(manifest, busybox, wasmbox), pod.ClassWasm)
}

// forVMs gives each pod of a manifest the class.
func forVMs(manifest string) string { return ofClass(manifest, pod.ClassMicroVM) }

// patient gives the probes of a manifest time: on a busy host, and in an emulated VM, a command
// takes a second, which is what they have by default.
func patient(manifest string) string {
	var b strings.Builder
	for line := range strings.Lines(manifest) {
		if strings.Contains(line, "Probe: {") && !strings.Contains(line, "timeoutSeconds") {
			line = strings.Replace(line, "Probe: {", "Probe: {timeoutSeconds: 20, ", 1)
		}
		b.WriteString(line)
	}
	return b.String()
}

func ofClass(manifest, class string) string {
	return podSpec.ReplaceAllStringFunc(manifest, func(spec string) string {
		if open, ok := strings.CutSuffix(spec, "{"); ok {
			return open + "{runtimeClassName: " + class + ", "
		}
		indent, _, _ := strings.Cut(spec, "spec:")
		return spec + "\n" + indent + "  runtimeClassName: " + class
	})
}

// scriptsOf are the scripts that apply to a class.
func scriptsOf(c class, pattern string) ([]string, error) {
	files, err := filepath.Glob(pattern)
	if err != nil || !c.marked {
		return files, err
	}
	var scripts []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if over := overLine.FindSubmatch(text); over != nil && slices.Contains(strings.Fields(string(over[1])), c.name) {
			scripts = append(scripts, file)
		}
	}
	return scripts, nil
}

func run(t *testing.T, c class, pattern string, alone bool) {
	scripts, err := scriptsOf(c, pattern)
	if err != nil || len(scripts) == 0 {
		t.Fatalf("there are no scripts %s: %v", pattern, err)
	}
	scripts = labelled(t, scripts, os.Getenv("MAGIKPOD_LABEL"))
	if len(scripts) == 0 {
		return // the other tests have those of this label
	}
	p := testscript.Params{
		Files: scripts, Cmds: commands(), RequireExplicitExec: true, RequireUniqueNames: true, Condition: c.condition,
		Setup: func(e *testscript.Env) error { return setup(e, c, alone) },
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

// vmSlots: an emulated VM keeps a core busy, and there are two.
var vmSlots = make(chan struct{}, 2)

// setup gives a script its namespace, and looks in the end that nothing of it is left.
func setup(e *testscript.Env, c class, alone bool) error {
	if c.name == pod.ClassMicroVM {
		vmSlots <- struct{}{}
		e.Defer(func() { <-vmSlots })
	}
	if err := c.adaptFiles(e.WorkDir); err != nil {
		return err
	}
	ns := strings.TrimSuffix(filepath.Base(e.WorkDir), ".txtar")
	ns = strings.TrimPrefix(ns, "script-")
	t := e.T().(scriptT)
	e.Setenv("NS", ns)
	e.Setenv("IMAGES", images)
	e.Setenv("BEGAN", strconv.FormatInt(time.Now().Unix(), 10))
	e.Setenv("REGISTRY", registryAddress)
	e.Setenv("HOME", "/root")
	e.Setenv(host.EnvSlowness, os.Getenv(host.EnvSlowness))
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
		if t.Failed() {
			t.Logf("what the pods have written:\n%s", written(ns, e.Getenv("BEGAN")))
		}
		// A script that has failed in the middle may have left pods, and that is not its fault.
		out, err := exec.Command("magikpodctl", "-n", ns, "delete", "--all", "--force").CombinedOutput()
		if err != nil {
			t.Errorf("cannot delete the pods of the script: %v: %s", err, out)
		}
		checkLeft(t.T, look, before)
	})
	return nil
}

// written is the end of what the pods of a namespace have written since a time, and what the daemon
// says of them.
func written(ns, began string) []byte {
	out, err := exec.Command("journalctl", "--quiet", "--no-pager", "--output=short-precise", "--lines=200", "--since=@"+began, "MAGIKPOD_NAMESPACE="+ns).CombinedOutput()
	if err != nil {
		out = fmt.Appendf(out, "journalctl: %v", err)
	}
	return out
}

// adaptFiles makes the manifests of a script, which are in dir, patient, and those of the class,
// unless they name one.
func (c class) adaptFiles(dir string) error {
	for _, pattern := range []string{"*.yaml", "*.json"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			manifest := patient(string(text))
			if c.adapt != nil && !strings.Contains(manifest, "runtimeClassName") {
				manifest = c.adapt(manifest)
			}
			if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
				return err
			}
		}
	}
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
