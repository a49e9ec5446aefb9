package pod

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"
)

var updateManifests = flag.Bool("update-manifests", false, "rewrite the expected output in testdata/manifests")

// TestManifests reads the manifests in testdata/manifests. Each is a txtar archive: a comment that
// explains it, the file manifest.yaml, if wanted the file namespace (of the caller), and what comes
// out: problems, one a line, and when there is no error the pods and other objects as they are run,
// in normalised.yaml.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/manifests/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { manifestFile(t, file) })
	}
}

func manifestFile(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]string{}
	for _, f := range archive.Files {
		in[f.Name] = string(f.Data)
	}
	problems, objects := process([]byte(in["manifest.yaml"]), strings.TrimSpace(in["namespace"]))
	got := txtar.Archive{Comment: archive.Comment, Files: []txtar.File{{Name: "manifest.yaml", Data: []byte(in["manifest.yaml"])}}}
	if ns, ok := in["namespace"]; ok {
		got.Files = append(got.Files, txtar.File{Name: "namespace", Data: []byte(ns)})
	}
	var lines bytes.Buffer
	failed := false
	for _, p := range problems {
		lines.WriteString(p.String() + "\n")
		failed = failed || p.Severity == SeverityError
	}
	if lines.Len() > 0 {
		got.Files = append(got.Files, txtar.File{Name: "problems", Data: lines.Bytes()})
	}
	if !failed {
		got.Files = append(got.Files, txtar.File{Name: "normalised.yaml", Data: toYAML(t, objects)})
	}
	if *updateManifests {
		if err := os.WriteFile(file, txtar.Format(&got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(txtar.Format(archive)), string(txtar.Format(&got))); diff != "" {
		t.Errorf("the manifest comes out differently (-want +got), go test ./pod -run TestManifests -update-manifests accepts it:\n%s", diff)
	}
}

// process is what the daemon does with a manifest.
func process(data []byte, namespace string) ([]Problem, []any) {
	m, errs, warnings, err := Read(data, namespace, nil)
	if err != nil {
		return ProblemsOf(err), nil
	}
	var objects []any
	for _, p := range m.Pods {
		objects = append(objects, p)
	}
	for _, o := range m.ConfigMaps {
		objects = append(objects, o)
	}
	for _, o := range m.Secrets {
		objects = append(objects, o)
	}
	return Problems(errs, warnings), objects
}

func toYAML(t *testing.T, objects []any) []byte {
	t.Helper()
	var out []byte
	for i, o := range objects {
		if i > 0 {
			out = append(out, "---\n"...)
		}
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, text...)
	}
	return out
}

// TestExamples: the examples are accepted, and nothing in them is ignored.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no examples: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if problems, _ := process(data, ""); len(problems) > 0 {
			t.Errorf("%s: %v", file, problems)
		}
	}
}
