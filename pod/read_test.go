package pod

import (
	"errors"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	web := []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: main, image: nginx, terminationMessagePath: relative}]}\n")
	m, errs, _, err := Read(web, "production", nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := m.Pods[0]; p.Namespace != "production" || ClassOf(p) != ClassContainers || p.Spec.RuntimeClassName == nil {
		t.Errorf("the pod is in namespace %q with class %v, want production and the default class filled in", p.Namespace, p.Spec.RuntimeClassName)
	}
	if text := errs.ToAggregate().Error(); !strings.Contains(text, "terminationMessagePath") {
		t.Errorf("the problems are %q, want one of terminationMessagePath", text)
	}

	cut := errors.New("the caller has gone")
	if m, _, _, err := Read(web, "", func() error { return cut }); !errors.Is(err, cut) || m != nil {
		t.Errorf("Read that was to stop after Parse: manifest %v, error %v, want none and %v", m, err, cut)
	}
	if _, _, _, err := Read([]byte("kind: ["), "", func() error { return cut }); KindOf(err) != Invalid {
		t.Errorf("Read of what is no manifest: %v, want kind Invalid", err)
	}
	if _, _, _, err := Read(web, "No Name", nil); KindOf(err) != Invalid {
		t.Errorf("Read into a namespace that cannot be one: %v, want kind Invalid", err)
	}
}

func TestParseWaitMode(t *testing.T) {
	for _, m := range []WaitMode{WaitNone, WaitStarted, WaitReady, WaitCompleted} {
		if got, err := ParseWaitMode(string(m)); got != m || err != nil {
			t.Errorf("ParseWaitMode(%q) = %q, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "Ready", "deleted"} {
		if got, err := ParseWaitMode(s); KindOf(err) != Invalid {
			t.Errorf("ParseWaitMode(%q) = %q, %v, want kind Invalid", s, got, err)
		}
	}
}
