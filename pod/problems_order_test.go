package pod

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestComparePaths(t *testing.T) {
	got := []string{"spec.containers[10].name", "spec.containers[2].name", "metadata.name", "spec.containers[2]"}
	slices.SortFunc(got, comparePaths)
	want := []string{"metadata.name", "spec.containers[2]", "spec.containers[2].name", "spec.containers[10].name"}
	if !slices.Equal(got, want) {
		t.Errorf("sorted %q, want %q", got, want)
	}
}

func TestPathPrefix(t *testing.T) {
	meta := &metav1.ObjectMeta{Namespace: "default", Name: "web"}
	for want, o := range map[string]manifestObject{
		"default/web: ":           {kind: "Pod", meta: meta, pod: &corev1.Pod{}},
		"configmap default/web: ": {kind: "ConfigMap", meta: meta},
	} {
		if got := o.prefix(); got != want {
			t.Errorf("prefix of a %s is %q, want %q", o.kind, got, want)
		}
	}
}
