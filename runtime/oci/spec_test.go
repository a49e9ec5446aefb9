package oci

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/magikrun/magikpod/internal/golden"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

const passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/var/web:/bin/sh\n1000:x:0:0::/trap:/bin/sh\nbig:x:4294967296:0::/:\n"
const group = "root:x:0:\nweb:x:102:\nlogs:x:103:web\n"

// input is a plain container of a plain pod.
func input() Input {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1", Annotations: map[string]string{"run.oci.handler": "krun"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "nginx"}}},
	}
	return Input{
		Pod:       p,
		Container: &p.Spec.Containers[0],
		Image: runtime.Image{
			Reference: "docker.io/library/nginx:1",
			Config: runtime.ImageConfig{
				Env: []string{"PATH=/usr/bin", "A=image"}, Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, WorkingDir: "srv",
			},
			Passwd: []byte(passwd), Group: []byte(group),
		},
		Rootfs:     "/run/magikpod/pods/u1/c/nginx/rootfs",
		ShmDir:     "/run/magikpod/pods/u1/shm",
		Hostname:   "web",
		Namespaces: Namespaces{Network: "/proc/7/fd/3", IPC: "/proc/7/fd/4", UTS: "/proc/7/fd/5"},
	}
}

func ptr[T any](v T) *T { return &v }

func TestSpecGolden(t *testing.T) {
	for name, change := range map[string]func(in *Input){
		"plain": func(in *Input) {},
		"full": func(in *Input) {
			c := in.Container
			c.Command, c.Args, c.WorkingDir = []string{"/bin/$(A)", "$$(A)"}, []string{"$(MISSING)", "x$(B)y"}, "/work"
			in.Env = []runtime.EnvVar{{Name: "A", Value: "pod"}, {Name: "B", Value: "1"}, {Name: "B", Value: "2"}}
			c.SecurityContext = &corev1.SecurityContext{
				RunAsUser: ptr(int64(101)), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false), RunAsNonRoot: ptr(true),
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined},
			}
			in.Pod.Spec.SecurityContext = &corev1.PodSecurityContext{
				FSGroup: ptr(int64(2000)), SupplementalGroups: []int64{3000, 2000},
				Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "80"}},
			}
			c.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")}
			in.Host.MemoryBytes = 1 << 30
			c.VolumeMounts = []corev1.VolumeMount{{MountPath: "/data/ro", RecursiveReadOnly: ptr(corev1.RecursiveReadOnlyEnabled)}}
			in.Mounts = []runtime.Mount{
				{Source: "/m/1", Destination: "/data/ro", ReadOnly: true}, {Source: "/m/0", Destination: "/data", Propagation: "rslave"}, {Destination: "/dev/shm"},
			}
			in.Namespaces.PID = "/proc/9/ns/pid"
		},
		"privileged": func(in *Input) {
			in.Container.SecurityContext = &corev1.SecurityContext{Privileged: ptr(true)}
			in.Pod.Spec.HostNetwork, in.Pod.Spec.HostPID, in.Pod.Spec.HostIPC = true, true, true
			in.Namespaces = Namespaces{}
			in.CgroupsPath = "/unit/container"
			in.Host.Capabilities = []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			change(&in)
			spec, err := Spec(in)
			if err != nil {
				t.Fatal(err)
			}
			// The profile depends on this host's kernel; TestSeccomp looks at it.
			if spec.Linux.Seccomp != nil {
				spec.Linux.Seccomp.Syscalls, spec.Linux.Seccomp.Architectures = nil, nil
			}
			got, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, filepath.Join("testdata", name+".json"), string(got)+"\n")
		})
	}
}

func TestSpecErrors(t *testing.T) {
	sc := func(in *Input) *corev1.SecurityContext {
		in.Container.SecurityContext = &corev1.SecurityContext{}
		return in.Container.SecurityContext
	}
	for _, tc := range []struct {
		name   string
		change func(in *Input)
		kind   pod.Kind
		want   string
	}{
		{"no command", func(in *Input) { in.Image.Config.Entrypoint, in.Image.Config.Cmd = nil, nil }, pod.Invalid, "no command specified"},
		{"image env without value", func(in *Input) { in.Image.Config.Env = []string{"SECRET"} }, pod.Invalid, `malformed entry "SECRET"`},
		{"image working directory NUL", func(in *Input) { in.Image.Config.WorkingDir = "/a\x00b" }, pod.Invalid, "NUL"},
		{"volume over /proc", func(in *Input) { in.Mounts = []runtime.Mount{{Destination: "/proc/../proc"}} }, pod.Invalid, "cannot be mounted"},
		{"volume below /proc", func(in *Input) { in.Mounts = []runtime.Mount{{Destination: "/proc//sys/kernel"}} }, pod.Invalid, "cannot be mounted"},
		{"volume over /sys", func(in *Input) { in.Mounts = []runtime.Mount{{Destination: "/./sys/"}} }, pod.Invalid, "cannot be mounted"},
		{"image env NUL", func(in *Input) { in.Image.Config.Env = []string{"A=\x00"} }, pod.Invalid, "malformed entry"},
		{"uid overflow", func(in *Input) { sc(in).RunAsUser = ptr(int64(1) << 32) }, pod.Invalid, "runAsUser 4294967296 is not in 0-2147483647"},
		{"gid negative", func(in *Input) { sc(in).RunAsGroup = ptr(int64(-1)) }, pod.Invalid, "runAsGroup -1"},
		{"image uid overflow", func(in *Input) { in.Image.Config.User = "4294967296" }, pod.Invalid, "as user"},
		{"image passwd overflow", func(in *Input) { in.Image.Config.User = "big" }, pod.Invalid, "as user"},
		{"unknown user", func(in *Input) { in.Image.Config.User = "nobody" }, pod.Invalid, `as user "nobody"`},
		{"runAsNonRoot uid 0", func(in *Input) { s := sc(in); s.RunAsNonRoot, s.RunAsUser = ptr(true), ptr(int64(0)) }, pod.Invalid,
			`container's runAsUser breaks non-root policy (pod: "web_default(u1)", container: nginx)`},
		{"runAsNonRoot image root", func(in *Input) { sc(in).RunAsNonRoot = ptr(true) }, pod.Invalid, "container has runAsNonRoot and image will run as root"},
		{"runAsNonRoot image 0", func(in *Input) { sc(in).RunAsNonRoot = ptr(true); in.Image.Config.User = "0:5" }, pod.Invalid, "image will run as root"},
		{"runAsNonRoot name", func(in *Input) { sc(in).RunAsNonRoot = ptr(true); in.Image.Config.User = "web" }, pod.Invalid, "image has non-numeric user (web)"},
		{"unknown capability", func(in *Input) { sc(in).Capabilities = &corev1.Capabilities{Add: []corev1.Capability{"FLY"}} }, pod.Invalid, `unknown capability "FLY"`},
		{"missing capability", func(in *Input) {
			sc(in).Capabilities = &corev1.Capabilities{Add: []corev1.Capability{"SYS_RESOURCE"}}
			in.Host.Capabilities = []string{"CAP_CHOWN"}
		}, pod.Unsupported, "cannot give the capability CAP_SYS_RESOURCE"},
		{"seccomp file", func(in *Input) {
			sc(in).SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost}
		}, pod.Unsupported, `type "Localhost"`},
		{"mount over root", func(in *Input) { in.Mounts = []runtime.Mount{{Source: "/a", Destination: "/x/.."}} }, pod.Invalid, "cannot be mounted at"},
		{"mount twice", func(in *Input) {
			in.Mounts = []runtime.Mount{{Source: "/a", Destination: "/x"}, {Source: "/b", Destination: "/x/"}}
		}, pod.Invalid, "two mounts at /x"},
		{"mount unresolved", func(in *Input) { in.Mounts = []runtime.Mount{{Source: "/a", SubPath: "b", Destination: "/x"}} }, pod.Internal, "was not resolved"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input()
			tc.change(&in)
			_, err := Spec(in)
			if err == nil || pod.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q (%s), want %q (%s)", err, pod.KindOf(err), tc.want, tc.kind)
			}
		})
	}
}

func TestUser(t *testing.T) {
	for _, tc := range []struct {
		name       string
		image      string
		user, grp  *int64
		strict     bool
		uid, gid   uint32
		additional []uint32
		home       string
	}{
		{"nothing", "", nil, nil, false, 0, 0, []uint32{0}, "/root"},
		{"name", "web", nil, nil, false, 101, 102, []uint32{102, 103}, "/var/web"},
		{"name and group keep the user's groups", "web:root", nil, nil, false, 101, 0, []uint32{0, 103}, "/var/web"},
		{"strict", "web", nil, nil, true, 101, 102, []uint32{102}, "/var/web"},
		{"number is never a name", "1000", nil, nil, false, 1000, 0, []uint32{0}, "/"},
		{"runAsUser drops the image's group", "web:logs", ptr(int64(7)), nil, false, 7, 0, []uint32{0}, "/"},
		{"runAsUser in passwd", "", ptr(int64(101)), nil, false, 101, 102, []uint32{102, 103}, "/var/web"},
		{"runAsGroup", "web", nil, ptr(int64(9)), false, 101, 9, []uint32{9, 103}, "/var/web"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input()
			in.Image.Config.User = tc.image
			in.Container.SecurityContext = &corev1.SecurityContext{RunAsUser: tc.user, RunAsGroup: tc.grp}
			if tc.strict {
				in.Pod.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroupsPolicy: ptr(corev1.SupplementalGroupsPolicyStrict)}
			}
			got, home, err := execUser(in)
			if err != nil || got.UID != tc.uid || got.GID != tc.gid || !slices.Equal(got.AdditionalGids, tc.additional) || home != tc.home {
				t.Errorf("got %+v, home %s, %v", got, home, err)
			}
		})
	}
}

// TestSeccomp checks that the default profile is there unless it was declined, and that it follows
// the capabilities.
func TestSeccomp(t *testing.T) {
	allows := func(in Input, call string) bool {
		spec, err := Spec(in)
		if err != nil {
			t.Fatal(err)
		}
		if spec.Linux.Seccomp == nil {
			return true
		}
		for _, rule := range spec.Linux.Seccomp.Syscalls {
			if rule.Action == "SCMP_ACT_ALLOW" && slices.Contains(rule.Names, call) {
				return true
			}
		}
		return false
	}
	in := input()
	if !allows(in, "read") || allows(in, "mount") || allows(in, "kexec_load") {
		t.Error("without a profile the default one must apply")
	}
	in.Container.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}}
	if !allows(in, "mount") || allows(in, "kexec_load") {
		t.Error("SYS_ADMIN must allow mount and not kexec_load")
	}
	in = input()
	in.Pod.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}}
	if !allows(in, "kexec_load") {
		t.Error("Unconfined of the pod must count")
	}
	in.Container.SecurityContext = &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	if allows(in, "kexec_load") {
		t.Error("the container's RuntimeDefault must win")
	}
}

func TestOOMScore(t *testing.T) {
	in := input()
	if got := oomScoreAdj(in); got == nil || *got != 1000 {
		t.Errorf("best effort: %v", got)
	}
	both := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("512Mi")}
	in.Container.Resources = corev1.ResourceRequirements{Limits: both, Requests: both}
	if got := oomScoreAdj(in); got != nil {
		t.Errorf("guaranteed, and the host does not permit: %d", *got)
	}
	in.Host.LowerOOMScore = true
	if got := oomScoreAdj(in); got == nil || *got != -997 {
		t.Errorf("guaranteed: %v", got)
	}
	in.Host.MemoryBytes = 1 << 30
	in.Container.Resources.Limits = nil
	if got := oomScoreAdj(in); got == nil || *got != 500 {
		t.Errorf("burstable with half of the memory: %v", got)
	}
}

// TestArgsBounded: what references to references make is no bigger than any process could be given.
func TestArgsBounded(t *testing.T) {
	in := input()
	in.Env = []runtime.EnvVar{{Name: "A", Value: strings.Repeat("x", 1<<20)}}
	for range 1000 {
		in.Container.Args = append(in.Container.Args, "$(A)")
	}
	if _, err := Command(in); pod.KindOf(err) != pod.Invalid {
		t.Errorf("1000 arguments of 1 MiB: %v", err)
	}
	in.Container.Args = []string{strings.Repeat("$(A)", 10_000)}
	if list, err := Command(in); err == nil && len(list[len(list)-1]) > pod.MaxExecBytes+4*10_000 {
		t.Errorf("an argument of %d bytes: %v", len(list[len(list)-1]), err)
	}
}
