package wasm

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		spec  string
		paths []string
	}{
		"fine":     {"containers: [{name: a, ports: [{containerPort: 80}], livenessProbe: {httpGet: {port: 80}}, securityContext: {runAsUser: 1}}]", nil},
		"probes":   {"initContainers: [{name: a, startupProbe: {exec: {command: [x]}}}]\ncontainers: [{name: b, readinessProbe: {exec: {command: [x]}}}]", []string{"spec.containers[0].readinessProbe.exec", "spec.initContainers[0].startupProbe.exec"}},
		"handlers": {"containers: [{name: a, lifecycle: {preStop: {exec: {command: [x]}}, postStart: {exec: {command: [x]}}}}]", []string{"spec.containers[0].lifecycle.postStart.exec", "spec.containers[0].lifecycle.preStop.exec"}},
		"terminal": {"containers: [{name: a, tty: true}]", []string{"spec.containers[0].tty"}},
		"ports":    {"containers: [{name: a, ports: [{containerPort: 1, protocol: TCP}, {containerPort: 2, protocol: UDP}]}]", []string{"spec.containers[0].ports[1].protocol"}},
		"host's":   {"hostNetwork: true\ncontainers: [{name: a, ports: [{containerPort: 80}, {containerPort: 8080}]}]", []string{"spec.containers[0].ports[0].containerPort"}},
		"security": {"containers: [{name: a, securityContext: {privileged: true, capabilities: {add: [NET_ADMIN]}, seccompProfile: {type: Unconfined}}}]", []string{"spec.containers[0].securityContext.capabilities.add", "spec.containers[0].securityContext.privileged", "spec.containers[0].securityContext.seccompProfile.type"}},
		"pod":      {"hostPID: true\nshareProcessNamespace: true\nsecurityContext: {sysctls: [{name: a, value: b}]}\ncontainers: []", []string{"spec.hostPID", "spec.securityContext.sysctls", "spec.shareProcessNamespace"}},
	} {
		t.Run(name, func(t *testing.T) {
			var p corev1.Pod
			if err := yaml.UnmarshalStrict([]byte(tt.spec), &p.Spec); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, err := range Validate(&p) {
				got = append(got, err.Field)
				if err.Detail == "" {
					t.Errorf("%s: no reason", err.Field)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.paths) {
				t.Errorf("refused: %s; want %s", strings.Join(got, " "), strings.Join(tt.paths, " "))
			}
		})
	}
}

func TestAsked(t *testing.T) {
	for annotation, want := range map[string][2]bool{
		"module.wasm.image/variant=compat": {true, false}, "module.wasm.image/variant=compat-smart": {false, true}, "run.oci.handler=wasm": {true, false},
		"run.oci.handler=wasm-smart": {false, true}, "run.oci.handler=krun": {false, false}, "other=wasm": {false, false},
	} {
		name, value, _ := strings.Cut(annotation, "=")
		var p corev1.Pod
		p.Annotations = map[string]string{name: value}
		if all, some := Asked(&p); all != want[0] || some != want[1] {
			t.Errorf("%s: all %v, some %v; want %v", annotation, all, some, want)
		}
	}
}
