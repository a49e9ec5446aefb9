package arch

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/magikrun/magikpod/"

// layers are those of the table in HACKING.md, from the lowest: a package imports packages of lower
// ones only. Packages of T are imported by tests only, which stand beside the table, as examples
// do.
var layers = []string{"I0", "I1", "L0", "L1", "L2", "L3", "L4", "L5", "T"}

// row is a line of the table: a package, or a pattern for several.
type row struct{ layer, pattern string }

var rowLine = regexp.MustCompile("(?m)^\\| ([A-Z][0-9]?) \\| `([^`]+)` \\|")

// readTable returns the rows of the table in HACKING.md.
func readTable(t *testing.T) []row {
	t.Helper()
	page, err := os.ReadFile("../../HACKING.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	for _, m := range rowLine.FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, row{m[1], m[2]})
	}
	if len(rows) < 10 {
		t.Fatalf("the table in HACKING.md has %d rows of packages: it has not been understood", len(rows))
	}
	return rows
}

// find returns the row of a package; nil when it has none.
func find(rows []row, name string) *row {
	for i, r := range rows {
		if ok, _ := path.Match(r.pattern, name); ok {
			return &rows[i]
		}
	}
	return nil
}

// beside says whether a package stands beside the table.
func beside(name string) bool {
	return strings.HasPrefix(name, "tests/") || strings.HasPrefix(name, "examples/")
}

// forbidden names imports that a package must not have, directly, and why.
var forbidden = map[string]map[string]string{
	"pod": {
		"os":       "the domain does no IO",
		"os/exec":  "the domain does no IO",
		"net":      "the domain does no IO",
		"net/http": "the domain does no IO",
		"syscall":  "the domain does no IO",
		"context":  "the domain never waits",
		"log/slog": "the domain returns errors",
	},
	"runtime/oci": {
		"os":      "the spec builder is pure",
		"os/exec": "the spec builder is pure",
		"net":     "the spec builder is pure",
	},
	"runtime/microvm/wire": {
		"os":       "the protocol is pure",
		"os/exec":  "the protocol is pure",
		"net":      "the protocol is pure",
		"syscall":  "the protocol is pure",
		"log/slog": "the protocol is pure",
	},
	"probe":               {"k8s.io/api/core/v1": "magikagent links it: Kubernetes' API makes that 7 MB larger"},
	"image":               {"log/slog": "L2 returns errors"},
	"volume":              {"log/slog": "L2 returns errors"},
	"netsetup":            {"log/slog": "L2 returns errors"},
	"units":               {"log/slog": "L2 returns errors"},
	"logs":                {"log/slog": "L2 returns errors"},
	"runtime/wasm/engine": {module + "pod": "magikwasm starts with every container: Kubernetes' API takes it longer"},
	"runtime/wasm/jail":   {module + "pod": "magikwasm starts with every container: Kubernetes' API takes it longer"},
	"cmd/magikwasm":       {module + "runtime/wasm": "magikwasm starts with every container: Kubernetes' API takes it longer"},
	"dbus":                {module + "daemon": "cmd/magikpodd joins them"},
	"daemon":              {module + "dbus": "cmd/magikpodd joins them"},
}

type listed struct {
	ImportPath string
	Name       string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Dir,GoFiles,Imports", "./...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}

// TestSmallPrograms: magikpodctl starts for each command, and Kubernetes' types, engines and
// net/http take it longer than an answer; of magikshim there is one in every pod, and Kubernetes'
// types take it 7 MB, net/http half a megabyte.
func TestSmallPrograms(t *testing.T) {
	for program, heavy := range map[string][]string{
		"magikpodctl": {module + "pod", "k8s.io/api", "k8s.io/apimachinery/pkg/apis", "github.com/tetratelabs/wazero", "net/http"},
		"magikshim":   {module + "pod", "k8s.io", "net/http"},
		"magikagent":  {module + "pod", "k8s.io"},
	} {
		cmd := exec.Command("go", "list", "-deps", "./cmd/"+program)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range heavy {
			if strings.Contains("\n"+string(out), "\n"+name+"\n") || strings.Contains("\n"+string(out), "\n"+name+"/") {
				t.Errorf("%s has %s in it", program, name)
			}
		}
	}
}

// TestTable: the table of HACKING.md is sorted, from the top down, with the tests' packages last, and each of its rows stands for a package.
func TestTable(t *testing.T) {
	rows, pkgs := readTable(t), list(t)
	for i, r := range rows {
		if !slices.Contains(layers, r.layer) {
			t.Errorf("HACKING.md: %s is in layer %s, want one of %s", r.pattern, r.layer, layers)
		}
		if !slices.ContainsFunc(pkgs, func(p listed) bool {
			ok, _ := path.Match(r.pattern, strings.TrimPrefix(p.ImportPath, module))
			return ok
		}) {
			t.Errorf("HACKING.md: there is no package %s: remove its row", r.pattern)
		}
		if i > 0 && compare(rows[i-1], r) >= 0 {
			t.Errorf("HACKING.md: the row of %s (%s) must come before that of %s (%s)", r.pattern, r.layer, rows[i-1].pattern, rows[i-1].layer)
		}
	}
}

// compare is the order of rows.
func compare(a, b row) int {
	if a.layer == b.layer {
		return strings.Compare(a.pattern, b.pattern)
	}
	if a.layer == "T" || b.layer == "T" {
		return strings.Compare(a.layer, b.layer)
	}
	return slices.Index(layers, b.layer) - slices.Index(layers, a.layer)
}

// TestImports: every package has a row in HACKING.md, and imports only what is in lower layers.
func TestImports(t *testing.T) {
	rows := readTable(t)
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if beside(name) {
			continue
		}
		from := find(rows, name)
		if from == nil {
			t.Errorf("package %s is not in the table of HACKING.md: give it a row", name)
			continue
		}
		for _, imp := range p.Imports {
			if why, bad := forbidden[name][imp]; bad {
				t.Errorf("%s imports %s: forbidden, %s", name, imp, why)
			}
			dep, own := strings.CutPrefix(imp, module)
			switch to := find(rows, dep); {
			case !own, from.layer == "T" && beside(dep):
			case to == nil && beside(dep):
				t.Errorf("%s imports %s: only tests do that", name, dep)
			case to == nil:
				t.Errorf("%s imports %s, which is not in the table of HACKING.md: give it a row", name, dep)
			case slices.Index(layers, to.layer) >= slices.Index(layers, from.layer):
				t.Errorf("%s (%s) imports %s (%s): imports only go down", name, from.layer, dep, to.layer)
			}
		}
	}
}

// TestPodHasNoClock: the domain gets the time passed in.
func TestPodHasNoClock(t *testing.T) {
	files, err := filepath.Glob("../../pod/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of package pod: %v", err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(src), "time.Now(") || strings.Contains(string(src), "time.Since(") {
			t.Errorf("%s reads the clock: pass the time in", f)
		}
	}
}

// TestPackageDocs: each package says once what belongs to it.
func TestPackageDocs(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		want := "// Package " + filepath.Base(p.ImportPath) + " "
		if p.Name == "main" {
			want = "// Command "
		}
		found := 0
		for _, file := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(src), want) || strings.Contains(string(src), "\n"+want) {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%s: %d of its files begin a package comment with %q, want one", p.ImportPath, found, want)
		}
	}
}
