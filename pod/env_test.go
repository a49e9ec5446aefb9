package pod

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// TestExpand has the cases of Kubernetes' documentation of $(VAR).
func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	for in, want := range map[string]string{
		"": "", "$": "$", "$A": "$A", "$(A)": "1", "$$(A)": "$(A)", "$$$(A)": "$1", "$$$$(A)": "$$(A)", "$(B)": "$(A)", "$(X)": "$(X)", "$(A": "$(A",
		"$()": "$()", "x$(EMPTY)y": "xy", "$(A)$(A)": "11", "a$": "a$", "$(A)$$": "1$", "$($(A))": "$($(A))", "é$(A)é": "é1é",
	} {
		if got := Expand(in, func(n string) (string, bool) { v, ok := vars[n]; return v, ok }); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestExpandBounded(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	got := Expand(strings.Repeat("$(A)", 1000), func(string) (string, bool) { return big, true })
	if len(got) > MaxExecBytes+4000 || len(got) < MaxExecBytes-len(big) {
		t.Errorf("%d bytes", len(got))
	}
}

const envPod = `
metadata: {name: web, namespace: team, uid: u-1, labels: {app: front}, annotations: {Note/x: hi}}
spec:
  serviceAccountName: sa
  initContainers:
  - {name: init, image: a, resources: {limits: {memory: 10Mi}}}
  containers:
  - name: c
    image: a
    resources: {limits: {cpu: 1500m}, requests: {cpu: 250m, memory: 1000000}}
`

func envSources() EnvSources {
	return EnvSources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			switch name {
			case "conf":
				return &corev1.ConfigMap{Data: map[string]string{"B": "b", "A": "a", "nul": "a\x00", "é": "x", "a.b": "dot", "REF": "$(A)"}}, nil
			case "broken":
				return nil, Errorf(Unavailable, "cannot read the disk")
			case "nil":
				return nil, nil
			}
			return nil, Errorf(NotFound, "there is no ConfigMap %s", name)
		},
		Secret: func(name string) (*corev1.Secret, error) {
			if name == "keys" {
				return &corev1.Secret{Data: map[string][]byte{"key": []byte("s3cret")}}, nil
			}
			return nil, Errorf(NotFound, "there is no Secret %s", name)
		},
		PodIPs: []string{"10.0.0.2", "fd00::2"}, HostIPs: []string{"192.0.2.1", "2001:db8::1"}, NodeName: "host-1",
		Capacity: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi")},
	}
}

func TestResolveEnv(t *testing.T) {
	for _, c := range []struct {
		name, container string // the container in YAML
		want            []NameValue
		err             string
		kind            Kind
	}{
		{name: "none", container: "{}"},
		{name: "values see the earlier ones", container: "env: [{name: A, value: '1'}, {name: B, value: $(A)2$(C)$$(A)}, {name: C, value: $(B)}, {name: A, value: $(A)x}]",
			want: []NameValue{{"A", "1"}, {"B", "12$(C)$(A)"}, {"C", "12$(C)$(A)"}, {"A", "1x"}}},
		{name: "envFrom is sorted, prefixed, comes first and is not expanded", container: "{envFrom: [{prefix: P_, configMapRef: {name: conf}}, {secretRef: {name: keys}}], env: [{name: Z, value: $(P_A)$(key)}]}",
			want: []NameValue{{"P_A", "a"}, {"P_B", "b"}, {"P_REF", "$(A)"}, {"P_a.b", "dot"}, {"key", "s3cret"}, {"Z", "as3cret"}}},
		{name: "optional", container: `{envFrom: [{configMapRef: {name: gone, optional: true}}, {secretRef: {name: gone, optional: true}}, {configMapRef: {name: nil, optional: true}}], env: [
			{name: A, valueFrom: {configMapKeyRef: {name: gone, key: a, optional: true}}}, {name: B, valueFrom: {secretKeyRef: {name: keys, key: gone, optional: true}}},
			{name: C, valueFrom: {configMapKeyRef: {name: conf, key: A}}}, {name: D, valueFrom: {secretKeyRef: {name: keys, key: key}}}]}`,
			want: []NameValue{{"C", "a"}, {"D", "s3cret"}}},
		{name: "fields", container: `env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: B, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}},
			{name: C, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}, {name: D, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}},
			{name: E, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['Note/x']"}}}, {name: F, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}},
			{name: G, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}, {name: H, valueFrom: {fieldRef: {fieldPath: status.hostIP}}},
			{name: I, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}, {name: J, valueFrom: {fieldRef: {fieldPath: status.podIP}}},
			{name: K, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}, {name: L, valueFrom: {fieldRef: {fieldPath: "metadata.labels['none']"}}}]`,
			want: []NameValue{{"A", "web"}, {"B", "team"}, {"C", "u-1"}, {"D", "front"}, {"E", "hi"}, {"F", "host-1"}, {"G", "sa"}, {"H", "192.0.2.1"},
				{"I", "192.0.2.1,2001:db8::1"}, {"J", "10.0.0.2"}, {"K", "10.0.0.2,fd00::2"}, {"L", ""}}},
		{name: "resources", container: `env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, containerName: c}}}, {name: B, valueFrom: {resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}},
			{name: C, valueFrom: {resourceFieldRef: {resource: requests.cpu, containerName: c}}}, {name: D, valueFrom: {resourceFieldRef: {resource: requests.memory, containerName: c, divisor: 1Ki}}},
			{name: E, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}, {name: F, valueFrom: {resourceFieldRef: {resource: limits.memory, containerName: init}}},
			{name: G, valueFrom: {resourceFieldRef: {resource: requests.memory}}}, {name: H, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage}}}]`,
			want: []NameValue{{"A", "2"}, {"B", "1500"}, {"C", "1"}, {"D", "977"}, {"E", "1024"}, {"F", "10485760"}, {"G", "0"}, {"H", "0"}}},
		{name: "no ConfigMap", container: "envFrom: [{configMapRef: {name: gone}}]", kind: NotFound, err: `cannot make the environment of container "x": the ConfigMap gone does not exist`},
		{name: "no Secret", container: "env: [{name: A, valueFrom: {secretKeyRef: {name: gone, key: a}}}]", kind: NotFound, err: `cannot set the variable A of container "x": the Secret gone does not exist`},
		{name: "no key", container: "env: [{name: A, valueFrom: {configMapKeyRef: {name: conf, key: gone}}}]", kind: NotFound, err: "the ConfigMap conf has no key gone"},
		{name: "unreadable, though optional", container: "envFrom: [{configMapRef: {name: broken, optional: true}}]", kind: Unavailable, err: "cannot read the disk"},
		{name: "NUL", container: "env: [{name: A, valueFrom: {configMapKeyRef: {name: conf, key: nul}}}]", kind: Invalid, err: "NUL"},
		{name: "unknown field", container: "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]", kind: Invalid, err: "status.phase"},
		{name: "unknown source", container: "env: [{name: A, valueFrom: {}}]", kind: Invalid, err: "not supported"},
		{name: "unknown container", container: "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, containerName: gone}}}]", kind: Invalid, err: "no container gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p corev1.Pod
			container := corev1.Container{}
			if err := errors.Join(yaml.UnmarshalStrict([]byte(envPod), &p), yaml.UnmarshalStrict([]byte(c.container), &container)); err != nil {
				t.Fatal(err)
			}
			container.Name = "x"
			got, err := ResolveEnv(&p, &container, envSources())
			if KindOf(err) != c.kind || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %q of kind %s, want %q of kind %s", err, KindOf(err), c.err, c.kind)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestResolveEnvBounded(t *testing.T) {
	c := corev1.Container{Name: "x", Env: []corev1.EnvVar{{Name: "A", Value: strings.Repeat("x", 1<<20)}}}
	for range 100 {
		c.Env = append(c.Env, corev1.EnvVar{Name: "A", Value: "$(A)"})
	}
	if _, err := ResolveEnv(&corev1.Pod{}, &c, EnvSources{}); KindOf(err) != Invalid {
		t.Errorf("an environment of 101 MiB: %v", err)
	}
}
