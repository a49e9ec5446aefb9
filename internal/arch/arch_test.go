package arch

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/magikrun/magikpod/"

// layers is the table: a package may import packages of a lower layer only. internal/* and tests/* stand beside it.
var layers = map[string]int{
	"pod":                        0,
	"probe":                      0,
	"runtime":                    1,
	"image":                      2,
	"volume":                     2,
	"netsetup":                   2,
	"units":                      2,
	"runtime/crun":               0,
	"runtime/oci":                2,
	"shim":                       1,
	"logs":                       2,
	"runtime/engine":             3,
	"runtime/native":             3,
	"runtime/onhost":             2,
	"runtime/wasm/engine":        1,
	"runtime/wasm/jail":          2,
	"runtime/wasm":               3,
	"runtime/microvm":            3,
	"runtime/microvm/wire":       0,
	"runtime/microvm/attach":     2,
	"runtime/microvm/client":     1,
	"runtime/microvm/probes":     1,
	"runtime/microvm/vmm":        1,
	"runtime/microvm/guest":      2,
	"runtime/microvm/shim":       2,
	"runtime/microvm/guestimage": 2,
	"runtime/microvm/disks":      2,
	"runtime/microvm/supervise":  2,
	"daemon":                     4,
	"dbus":                       4,
	"cmd/magikpodd":              5,
	"cmd/magikpodctl":            5,
	"cmd/magikvmm":               5,
	"cmd/magikshim":              5,
	"cmd/magikwasm":              5,
	"cmd/magikagent":             5,
	"runtime/runtimetest":        3, // imported by tests only
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

// TestSmallPrograms: magikpodctl does not start with the libraries of registries and archives, which took it a millisecond; of magikshim there is one in every pod, and
// Kubernetes' types take it 7 MB, net/http half a megabyte.
func TestSmallPrograms(t *testing.T) {
	for program, heavy := range map[string][]string{
		"magikpodctl": {module + "image", "github.com/google/go-containerregistry", "github.com/klauspost/compress", "archive/tar"},
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

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "tests/") || strings.HasPrefix(name, "examples/") {
			continue
		}
		layer, ok := layers[name]
		if !ok {
			t.Errorf("package %s is not in the table of internal/arch: give it a layer", name)
			continue
		}
		for _, imp := range p.Imports {
			if why, bad := forbidden[name][imp]; bad {
				t.Errorf("%s imports %s: forbidden, %s", name, imp, why)
			}
			dep, own := strings.CutPrefix(imp, module)
			if !own || strings.HasPrefix(dep, "internal/") {
				continue
			}
			if depLayer, ok := layers[dep]; !ok || depLayer >= layer {
				t.Errorf("%s (L%d) imports %s (L%d): imports only go down", name, layer, dep, depLayer)
			}
			if dep == "runtime/runtimetest" {
				t.Errorf("%s imports runtime/runtimetest outside of its tests", name)
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
