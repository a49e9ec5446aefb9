package pod

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TestClassRules: what a pod cannot have in one class, it can have in the others.
func TestClassRules(t *testing.T) {
	const main = "containers: [{name: main, image: i}]"
	container := func(fields string) string { return "containers: [{name: main, image: i, " + fields + "}]" }
	volume := func(source string) string {
		return main + "\nvolumes: [{name: v, hostPath: {path: /srv, type: " + source + "}}]"
	}
	mount := func(list, propagation string) string {
		text := fmt.Sprintf("volumes: [{name: v, emptyDir: {}}]\n%s: [{name: a, image: i, volumeMounts: [{name: v, mountPath: /v, mountPropagation: %s}]}]", list, propagation)
		if list == "initContainers" {
			text += "\n" + main
		}
		return text
	}
	const all, modules, vm, native = "all", ClassWasm, ClassMicroVM, ClassContainers
	for _, c := range []struct {
		name string
		spec string
		by   string // the class that refuses it, or all of them; empty: none does
		want string // of each problem, in the order of the paths: the path and the beginning of the reason, separated by |
	}{
		{"plain", container("ports: [{containerPort: 80}], livenessProbe: {httpGet: {port: 80}}, securityContext: {runAsUser: 1}"), "", ""},
		{"directory", volume("Directory"), "", ""},
		{"seccomp of the runtime", container("securityContext: {seccompProfile: {type: RuntimeDefault}}"), "", ""},
		{"hostUsers", "hostUsers: false\n" + main, all, "spec.hostUsers: Forbidden"},
		{"os", "os: {name: windows}\n" + main, all, "spec.os.name: Forbidden"},
		{"tty", container("tty: true"), all, "spec.containers[0].tty: Forbidden"},
		{"block device", container("volumeDevices: [{name: v, devicePath: /dev/x}]"), all, "spec.containers[0].volumeDevices: Forbidden"},
		{"own seccomp of the pod", "securityContext: {seccompProfile: {type: Localhost, localhostProfile: p}}\n" + main, all, "spec.securityContext.seccompProfile.type: Forbidden"},

		{"probes", "initContainers: [{name: a, image: i, restartPolicy: Always, startupProbe: {exec: {command: [x]}}}]\n" + container("readinessProbe: {exec: {command: [x]}}"), modules,
			"spec.containers[0].readinessProbe.exec: Forbidden: a WebAssembly module has no second process|spec.initContainers[0].startupProbe.exec: Forbidden"},
		{"UDP", container("ports: [{containerPort: 1, protocol: TCP}, {containerPort: 2, protocol: UDP}]"), modules, "spec.containers[0].ports[1].protocol: Forbidden: a WebAssembly module gets TCP"},
		{"capabilities", container("securityContext: {capabilities: {add: [NET_ADMIN]}}"), modules, "spec.containers[0].securityContext.capabilities.add: Forbidden"},
		{"privileged", container("securityContext: {privileged: true}"), modules, "spec.containers[0].securityContext.privileged: Forbidden"},
		{"no seccomp", container("securityContext: {seccompProfile: {type: Unconfined}}"), modules, "spec.containers[0].securityContext.seccompProfile.type: Unsupported value"},
		{"shared processes", "shareProcessNamespace: true\n" + main, modules, "spec.shareProcessNamespace: Forbidden: a WebAssembly module sees no processes"},
		{"sysctl of the pod", "securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}\n" + main, modules, "spec.securityContext.sysctls: Forbidden"},

		{"hostIPC", "hostIPC: true\n" + main, vm, "spec.hostIPC: Forbidden: a VM does not share memory"},
		{"hostNetwork", "hostNetwork: true\n" + main, vm, "spec.hostNetwork: Forbidden: a VM has a network of its own"},
		{"socket", volume("Socket"), vm, "spec.volumes[0].hostPath.type: Forbidden: nobody listens"},
		{"device", volume("CharDevice"), vm, "spec.volumes[0].hostPath.type: Forbidden: the host's devices"},
		{"block device of the host", volume("BlockDevice"), vm, "spec.volumes[0].hostPath.type: Forbidden: the host's devices"},
		{"no propagation", mount("containers", "None"), "", ""},
		{"host to container", mount("initContainers", "HostToContainer"), vm, "spec.initContainers[0].volumeMounts[0].mountPropagation: Forbidden"},
		{"SIGRTMIN+3", container("lifecycle: {stopSignal: SIGRTMIN+3}"), "", ""},
		{"SIGRTMIN", container("lifecycle: {stopSignal: SIGRTMIN}"), "", ""},
		{"SIGKILL", container("lifecycle: {stopSignal: SIGKILL}"), "", ""},
		{"SIGPIPE", container("lifecycle: {stopSignal: SIGPIPE}"), vm, "spec.containers[0].lifecycle.stopSignal: Forbidden: the process that stands in"},
		{"SIGURG", container("lifecycle: {stopSignal: SIGURG}"), vm, "spec.containers[0].lifecycle.stopSignal: Forbidden"},
		{"own AppArmor", container("securityContext: {appArmorProfile: {type: Localhost, localhostProfile: p}}"), vm, "spec.containers[0].securityContext.appArmorProfile.type: Unsupported value"},
		{"own AppArmor of the pod", "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: p}}\n" + main, vm, "spec.securityContext.appArmorProfile.type: Unsupported value"},
	} {
		for _, class := range []string{native, modules, vm} {
			t.Run(c.name+" in "+class, func(t *testing.T) {
				want := ""
				if c.by == all || c.by == class {
					want = c.want
				}
				wantRefused(t, class, "", c.spec, want)
			})
		}
	}
}

// TestClassRulesOf: fields that classes refuse for reasons of their own, and pods of pod-containers
// that ask for WebAssembly.
func TestClassRulesOf(t *testing.T) {
	const main = "containers: [{name: main, image: i}]"
	for name, c := range map[string]struct{ class, annotation, spec, want string }{
		"processes of the host in modules": {ClassWasm, "", "hostPID: true\n" + main, "spec.hostPID: Forbidden: a WebAssembly module sees no processes"},
		"processes of the host in a VM":    {ClassMicroVM, "", "hostPID: true\n" + main, "spec.hostPID: Forbidden: a VM does not see the host's processes"},
		"processes of the host":            {ClassContainers, "", "hostPID: true\n" + main, ""},
		"any sysctl in a VM":               {ClassMicroVM, "", "securityContext: {sysctls: [{name: vm.max_map_count, value: '1'}]}\n" + main, ""},
		"any sysctl": {ClassContainers, "", "hostIPC: true\nsecurityContext: {sysctls: [{name: fs.mqueue.msg_max, value: '1'}, {name: kernel.sem, value: '1'}, {name: net.core.somaxconn, value: '1'}, {name: vm.swappiness, value: '1'}]}\n" + main,
			"spec.securityContext.sysctls[0].name: Forbidden|spec.securityContext.sysctls[1].name: Forbidden|spec.securityContext.sysctls[3].name: Forbidden"},
		"low ports of the host": {ClassWasm, "", "hostNetwork: true\ncontainers: [{name: main, image: i, ports: [{containerPort: 80}, {containerPort: 8080}]}]",
			"spec.containers[0].ports[0].containerPort: Forbidden: in the host's network"},
		"asked for all":    {ClassContainers, "compat", "shareProcessNamespace: true\n" + main, "spec.shareProcessNamespace: Forbidden"},
		"asked for some":   {ClassContainers, "compat-smart", "shareProcessNamespace: true\n" + main, ""},
		"asked of a VM":    {ClassMicroVM, "compat", "shareProcessNamespace: true\n" + main, ""},
		"asked of modules": {ClassWasm, "compat-smart", "shareProcessNamespace: true\n" + main, "spec.shareProcessNamespace: Forbidden"},
	} {
		t.Run(name, func(t *testing.T) { wantRefused(t, c.class, c.annotation, c.spec, c.want) })
	}
}

// wantRefused checks the errors of a pod: want has the beginning of each, separated by |.
func wantRefused(t *testing.T, class, annotation, spec, want string) {
	t.Helper()
	head := "apiVersion: v1\nkind: Pod\nmetadata: {name: web, annotations: {module.wasm.image/variant: '" + annotation + "'}}\nspec:\n  runtimeClassName: " + class + "\n  "
	_, errs, _, err := Read([]byte(head+strings.ReplaceAll(spec, "\n", "\n  ")), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var prefixes []string
	if want != "" {
		prefixes = strings.Split(want, "|")
	}
	if len(errs) != len(prefixes) {
		t.Fatalf("%d problems, want %d:\n%v", len(errs), len(prefixes), errs)
	}
	for i, prefix := range prefixes {
		if !strings.HasPrefix(errs[i].Error(), prefix) {
			t.Errorf("problem %d is %q, want one that begins with %q", i, errs[i], prefix)
		}
	}
}

func TestWasmErrors(t *testing.T) {
	yes := true
	c := &corev1.Container{Name: "a", SecurityContext: &corev1.SecurityContext{Privileged: &yes}, Lifecycle: &corev1.Lifecycle{
		PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}, PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}}
	found := map[string]bool{}
	for _, e := range WasmErrors(&corev1.PodSpec{}, c, field.NewPath("c")) {
		found[e.Field] = true
	}
	for _, path := range []string{"c.securityContext.privileged", "c.lifecycle.preStop.exec", "c.lifecycle.postStart.exec"} {
		if !found[path] || len(found) != 3 {
			t.Errorf("refused are %v, want %s among the three", found, path)
		}
	}
}

func TestAskedWasm(t *testing.T) {
	for annotation, want := range map[string][2]bool{
		"module.wasm.image/variant=compat": {true, false}, "module.wasm.image/variant=compat-smart": {false, true}, "run.oci.handler=wasm": {true, false},
		"run.oci.handler=wasm-smart": {false, true}, "run.oci.handler=krun": {false, false}, "other=wasm": {false, false},
	} {
		name, value, _ := strings.Cut(annotation, "=")
		var p corev1.Pod
		p.Annotations = map[string]string{name: value}
		if all, some := AskedWasm(&p); all != want[0] || some != want[1] {
			t.Errorf("%s: all %v, some %v; want %v", annotation, all, some, want)
		}
	}
}
