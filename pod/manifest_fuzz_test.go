package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// FuzzManifest reads anything. Nothing panics, every problem is one line, an error has the kind
// Invalid, a pod that is accepted is accepted again after it was written and read, unchanged, and
// its environment can be made or cannot, but within bounds. The seeds are the manifests of
// testdata/manifests and what is committed in testdata/fuzz.
func FuzzManifest(f *testing.F) {
	files, err := filepath.Glob("testdata/manifests/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatalf("found no files: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	if data, err := os.ReadFile("../examples/web.yaml"); err == nil {
		f.Add(data)
	}
	for _, h := range hostile {
		f.Add([]byte(h.manifest))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err == nil {
			err = m.SetNamespace("")
		}
		if err != nil {
			if KindOf(err) != Invalid {
				t.Errorf("kind %s: %v", KindOf(err), err)
			}
			oneLineEach(t, ProblemsOf(err))
			return
		}
		for _, p := range m.Pods {
			Default(p)
		}
		errs, warnings := Validate(&m)
		oneLineEach(t, Problems(errs, warnings))
		if len(errs) > 0 {
			return
		}
		for _, p := range m.Pods {
			survives(t, p)
			environment(t, p)
		}
	})
}

func oneLineEach(t *testing.T, list []Problem) {
	for _, p := range list {
		if strings.ContainsAny(p.String(), "\r\n\x00\x1b") || len(p.String()) > 4*maxShown {
			t.Errorf("a problem is not one short line: %q", p)
		}
	}
}

// survives writes an accepted pod and reads it again.
func survives(t *testing.T, p *corev1.Pod) {
	text, err := yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > MaxManifestBytes {
		return // what aliases shortened
	}
	again, err := Parse(text)
	if err != nil {
		t.Fatalf("an accepted pod cannot be read again: %v\n%s", err, text)
	}
	Default(again.Pods[0])
	if errs, _ := Validate(&again); len(errs) > 0 {
		t.Fatalf("an accepted pod is not accepted again: %v\n%s", errs, text)
	}
	other, err := yaml.Marshal(again.Pods[0])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(other)); diff != "" {
		t.Errorf("a pod changes when it is written and read:\n%s", diff)
	}
}

func environment(t *testing.T, p *corev1.Pod) {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			env, err := ResolveEnv(p, &list[i], EnvSources{})
			if err != nil && KindOf(err) != NotFound && KindOf(err) != Invalid {
				t.Errorf("kind %s: %v", KindOf(err), err)
			}
			total := 0
			for _, e := range env {
				total += len(e.Name) + len(e.Value)
			}
			if total > MaxExecBytes {
				t.Errorf("an environment of %d bytes", total)
			}
		}
	}
	if _, _, err := Hostname(p); err != nil {
		t.Errorf("an accepted pod has no hostname: %v", err)
	}
}
