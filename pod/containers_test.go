package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestContainerPaths(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	s := &corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "init"}, {Name: "side", RestartPolicy: &always}},
		Containers:     []corev1.Container{{Name: "a"}, {Name: "b"}, {Name: "c"}},
	}
	var got []string
	for c, path := range ContainerPaths(s) {
		got = append(got, path.String()+"="+c.Name)
		if c != FindContainer(s, c.Name) {
			t.Errorf("the container at %s is a copy, not the pod's own", path)
		}
		if Sidecar(c) != (c.Name == "side") {
			t.Errorf("Sidecar(%s) = %t", c.Name, Sidecar(c))
		}
		if c.Name == "b" {
			break
		}
	}
	want := "spec.initContainers[0]=init spec.initContainers[1]=side spec.containers[0]=a spec.containers[1]=b"
	if strings.Join(got, " ") != want {
		t.Errorf("the containers up to b are %s, want %s", strings.Join(got, " "), want)
	}
	if c := FindContainer(s, "d"); c != nil {
		t.Errorf("found container %q in a pod that has no container d", c.Name)
	}
}
