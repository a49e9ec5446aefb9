package runtime

import (
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestTmpfsOptions(t *testing.T) {
	for _, tc := range []struct {
		name  string
		tmpfs Tmpfs
		want  string
	}{
		{"sticky", Tmpfs{Mode: os.ModeSticky | 0o777}, "mode=1777"},
		{"size and group", Tmpfs{Mode: os.ModeSticky | os.ModeSetgid | 0o777, SizeBytes: 4096, GID: 2000}, "mode=3777,size=4096,gid=2000"},
		{"plain", Tmpfs{Mode: 0o700}, "mode=0700"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.tmpfs.Options(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestTraces: which containers have SYS_PTRACE, and are not the host's anyway.
func TestTraces(t *testing.T) {
	yes := true
	for name, tc := range map[string]struct {
		context *corev1.SecurityContext
		want    bool
	}{
		"none":       {nil, false},
		"empty":      {&corev1.SecurityContext{}, false},
		"other":      {&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}, false},
		"ptrace":     {&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "SYS_PTRACE"}}}, true},
		"long":       {&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"cap_sys_ptrace"}}}, true},
		"all":        {&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"all"}}}, true},
		"dropped":    {&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"SYS_PTRACE"}}}, false},
		"privileged": {&corev1.SecurityContext{Privileged: &yes, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}, false},
	} {
		if got := Traces(&corev1.Pod{}, &corev1.Container{SecurityContext: tc.context}); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	ptrace := &corev1.Container{SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}}
	if Traces(&corev1.Pod{Spec: corev1.PodSpec{HostPID: true}}, ptrace) {
		t.Error("what has the host's PID namespace has the host anyway")
	}
}
