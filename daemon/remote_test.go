package daemon

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
)

// remote answers as a class does whose containers are not here.
type remote struct {
	runtime.PodManager
	asked []probe.Probe
	use   map[string]pod.ResourceUse
	err   error
}

func (r *remote) Probe(_ context.Context, _ pod.Ref, container string, p probe.Probe) (bool, string, error) {
	r.asked = append(r.asked, p)
	return false, "said by " + container, r.err
}

func (r *remote) ContainerStats(context.Context, pod.Ref) (map[string]pod.ResourceUse, error) {
	return r.use, r.err
}

// A class that makes probes itself gets them in a form for which no manifest is needed.
func TestProbeRemote(t *testing.T) {
	headers := []corev1.HTTPHeader{{Name: "X-A", Value: "b"}, {Name: "X-A", Value: "c"}}
	c := &corev1.Container{
		Name: "web", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}, Env: []corev1.EnvVar{{Name: "FILE", Value: "/tmp/up"}},
	}
	for _, test := range []struct {
		name    string
		handler corev1.ProbeHandler
		seconds int32
		ips     []netip.Addr
		want    *probe.Probe
		message string
	}{
		{"exec", corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "$(FILE)"}}}, 3, nil,
			&probe.Probe{Exec: []string{"test", "-e", "/tmp/up"}, Timeout: 3 * time.Second}, "said by web"},
		{"http with a named port", corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http"), Path: "/x?y", HTTPHeaders: headers}}, 0, addresses("10.0.0.9"),
			&probe.Probe{HTTP: &probe.HTTP{Host: "10.0.0.9", Port: 8080, Path: "/x?y", Headers: []probe.Header{{Name: "X-A", Value: "b"}, {Name: "X-A", Value: "c"}}}, Timeout: time.Second}, "said by web"},
		{"https of another host", corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(443), Scheme: corev1.URISchemeHTTPS, Host: "127.0.0.1"}}, 0, nil,
			&probe.Probe{HTTP: &probe.HTTP{Scheme: "https", Host: "127.0.0.1", Port: 443}, Timeout: time.Second}, "said by web"},
		{"tcp", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(5432)}}, 0, addresses("10.0.0.9", "fd00::9"),
			&probe.Probe{TCP: &probe.TCP{Host: "10.0.0.9", Port: 5432}, Timeout: time.Second}, "said by web"},
		{"tcp of another host, with a named port", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("http"), Host: "127.0.0.1"}}, 0, nil,
			&probe.Probe{TCP: &probe.TCP{Host: "127.0.0.1", Port: 8080}, Timeout: time.Second}, "said by web"},
		{"no such port", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("none")}}, 0, addresses("10.0.0.9"), nil, "invalid port number: none"},
		{"port 0", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}, 0, addresses("10.0.0.9"), nil, "invalid port number: 0"},
		{"port 65536", corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(65536)}}, 0, addresses("10.0.0.9"), nil, "invalid port number: 65536"},
		{"no address", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}}, 0, nil, nil, "the pod has no IP address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &remote{}
			b := newProber(r, nil)
			b.pod, b.ips = &corev1.Pod{}, test.ips
			ok, message, err := b.probe(t.Context(), c, &corev1.Probe{ProbeHandler: test.handler, TimeoutSeconds: test.seconds})
			if ok || err != nil || message != test.message {
				t.Errorf("%t, %q, %v; want %q", ok, message, err, test.message)
			}
			var want []probe.Probe
			if test.want != nil {
				want = []probe.Probe{*test.want}
			}
			if diff := cmp.Diff(want, r.asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// The pod's figures are the host's, with what it takes to run the containers; theirs are the class's.
func TestStatsRemote(t *testing.T) {
	root := t.TempDir()
	testutil.WriteFiles(t, filepath.Join(root, "pod.slice"), map[string]string{"memory.current": "5000\n", "memory.max": "max\n", "memory.stat": "inactive_file 0\n"})
	r := &remote{use: map[string]pod.ResourceUse{"a": {MemoryBytes: new(uint64(17))}}}
	got, err := statsOf(t.Context(), root, "pod.slice", pod.Ref{}, r)
	if err != nil || *got.Pod.MemoryBytes != 5000 || got.Pod.Processes != nil || len(got.Containers) != 1 || *got.Containers["a"].MemoryBytes != 17 {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = statsOf(t.Context(), root, "gone.slice", pod.Ref{}, r)
	if err != nil || *got.Pod.CPUNanos != 0 || *got.Pod.MemoryBytes != 0 || *got.Pod.Processes != 0 {
		t.Errorf("a pod that is down: %+v, %v", got, err)
	}
	r.err = errors.New("the VM is gone")
	if _, err := statsOf(t.Context(), root, "pod.slice", pod.Ref{}, r); err == nil {
		t.Error("an error of the class is lost")
	}
}

func TestConfigClasses(t *testing.T) {
	read := func(text string) (Config, error) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "magikpod.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(path)
	}
	c, err := read("microvm: {vmm: qemu, machine: q35, accel: tcg, kernel: /boot/vmlinuz-*, memory: 256Mi, cpus: 2, scratch: 1Gi}")
	if err != nil || c.MicroVM.Accel != "tcg" || c.MicroVM.Memory.Value() != 256<<20 || c.MicroVM.Scratch.Value() != 1<<30 || c.MicroVM.CPUs != 2 {
		t.Errorf("%+v, %v", c.MicroVM, err)
	}
	for _, program := range []string{"wasmtime", "/opt/wasmtime/bin/wasmtime"} {
		if c, err := read("wasm: {components: " + program + "}"); err != nil || c.Wasm.Components != program {
			t.Errorf("%+v, %v", c.Wasm, err)
		}
	}
	for text, want := range map[string]string{
		"microvm: {vmm: libkrun}":       `microvm.vmm: libkrun has no driver any more (docs/RATIONALE.md says why): use qemu or cloud-hypervisor`,
		"microvm: {vmm: bochs}":         `microvm.vmm: "bochs" is none of qemu, cloud-hypervisor`,
		"microvm: {accel: xen}":         `microvm.accel: "xen" is none of kvm, tcg`,
		"microvm: {vmm: vmware}":        "microvm.vmm",
		"microvm: {machine: isapc}":     "microvm.machine",
		"microvm: {kernel: vmlinuz}":    `microvm.kernel: "vmlinuz" is not absolute`,
		"microvm: {memory: 1Mi}":        "microvm.memory",
		"microvm: {scratch: -1}":        "microvm.scratch",
		"microvm: {cpus: -2}":           "microvm.cpus",
		"microvm: {acceleration: fast}": "acceleration",
		"wasm: {components: wazero}":    `wasm.components: "wazero" is neither wasmtime nor an absolute path`,
		"wasm: {engine: wasmtime}":      "engine",
	} {
		if _, err := read(text); pod.KindOf(err) != pod.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
