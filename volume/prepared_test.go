package volume

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

func TestMounts(t *testing.T) {
	m, base := newManager(t, "")
	memory := volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}})
	data := volume("data", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	prepared, err := m.Prepare(t.Context(), podWith(data, memory, configMapVolume()), sources(map[string]*corev1.ConfigMap{"app": {}}, nil))
	must(t, err)
	volumes := base + "/state/pods/" + string(uid) + "/volumes/"
	for _, tc := range []struct {
		name  string
		mount corev1.VolumeMount
		want  runtime.Mount
		kind  pod.Kind
	}{
		{name: "plain", mount: corev1.VolumeMount{Name: "data", MountPath: "/data/"}, want: runtime.Mount{Source: volumes + "data", Destination: "/data", Propagation: "private"}},
		{name: "relative", mount: corev1.VolumeMount{Name: "data", MountPath: "data"}, want: runtime.Mount{Source: volumes + "data", Destination: "/data", Propagation: "private"}},
		{
			name:  "subPath, read-only, from the host",
			mount: corev1.VolumeMount{Name: "data", MountPath: "/d", SubPath: "a//b/", ReadOnly: true, MountPropagation: ptr(corev1.MountPropagationHostToContainer)},
			want:  runtime.Mount{Source: volumes + "data", SubPath: "a/b", Destination: "/d", ReadOnly: true, Propagation: "rslave"},
		},
		{
			name:  "memory",
			mount: corev1.VolumeMount{Name: "mem", MountPath: "/m", SubPath: "x", MountPropagation: ptr(corev1.MountPropagationNone)},
			want:  runtime.Mount{SharedTmpfs: "mem", SubPath: "x", Destination: "/m", Propagation: "private"},
		},
		{
			name:  "always read-only",
			mount: corev1.VolumeMount{Name: "config", MountPath: "/c", SubPath: "."},
			want:  runtime.Mount{Source: volumes + "config", Destination: "/c", ReadOnly: true, Propagation: "private"},
		},
		{name: "unknown", mount: corev1.VolumeMount{Name: "none", MountPath: "/n"}, kind: pod.NotFound},
		{name: "bidirectional", mount: corev1.VolumeMount{Name: "data", MountPath: "/n", MountPropagation: ptr(corev1.MountPropagationBidirectional)}, kind: pod.Unsupported},
		{name: "subPath ..", mount: corev1.VolumeMount{Name: "data", MountPath: "/n", SubPath: "a/../.."}, kind: pod.Invalid},
		{name: "subPath absolute", mount: corev1.VolumeMount{Name: "data", MountPath: "/n", SubPath: "/etc"}, kind: pod.Invalid},
		{name: "subPathExpr", mount: corev1.VolumeMount{Name: "data", MountPath: "/n", SubPathExpr: "$(A)"}, kind: pod.Internal},
		{name: "root", mount: corev1.VolumeMount{Name: "data", MountPath: "//."}, kind: pod.Invalid},
		{name: "no path", mount: corev1.VolumeMount{Name: "data"}, kind: pod.Invalid},
		{name: "path ..", mount: corev1.VolumeMount{Name: "data", MountPath: "/a/../b"}, kind: pod.Invalid},
		{name: "path NUL", mount: corev1.VolumeMount{Name: "data", MountPath: "/a\x00"}, kind: pod.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mounts, err := prepared.Mounts(&corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{tc.mount}})
			if tc.kind != "" {
				if pod.KindOf(err) != tc.kind || !strings.Contains(err.Error(), `in container "c"`) {
					t.Errorf("got %v: %v; want %v", pod.KindOf(err), err, tc.kind)
				}
				return
			}
			must(t, err)
			if diff := cmp.Diff([]runtime.Mount{tc.want}, mounts); diff != "" {
				t.Error(diff)
			}
		})
	}
}
