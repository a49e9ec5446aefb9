package pod

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// podManifest is a manifest of one pod with more in its spec and its container.
func podManifest(spec, container string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n" + spec + "  containers:\n  - name: nginx\n    image: nginx\n" + container
}

// repeat makes n list items from a format with one %d.
func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// TestLimits checks each limit on both of its sides.
func TestLimits(t *testing.T) {
	const variable = "    - {name: V%d, value: x}\n"
	const volume = "  - {name: v%d, emptyDir: {}}\n"
	const init = "  - {name: i%d, image: a}\n"
	for _, c := range []struct{ name, manifest, want string }{
		{"256 variables", podManifest("", "    env:\n"+repeat(256, variable)), ""},
		{"257 variables", podManifest("", "    env:\n"+repeat(257, variable)), "spec.containers[0].env: Too many"},
		{"300 variables", podManifest("", "    env:\n"+repeat(300, variable)), "spec.containers[0].env: Too many"},
		{"64 volumes", podManifest("  volumes:\n"+repeat(64, volume), ""), ""},
		{"65 volumes", podManifest("  volumes:\n"+repeat(65, volume), ""), "spec.volumes: Too many"},
		{"16 containers", podManifest("  initContainers:\n"+repeat(15, init), ""), ""},
		{"17 containers", podManifest("  initContainers:\n"+repeat(16, init), ""), "spec.containers: Too many"},
		{"grace 300", podManifest("  terminationGracePeriodSeconds: 300\n", ""), ""},
		{"grace 301", podManifest("  terminationGracePeriodSeconds: 301\n", ""), "spec.terminationGracePeriodSeconds: Invalid value: 301: must be between 0 and 300"},
		{"grace -1", podManifest("  terminationGracePeriodSeconds: -1\n", ""), "spec.terminationGracePeriodSeconds: Invalid value: -1: must be between 0 and 300"},
		{"1 MiB", podManifest("", "    args: ['"+strings.Repeat("x", MaxManifestBytes-200)+"']\n"), ""},
		{"2 MiB", podManifest("", "    args: ['"+strings.Repeat("x", 2*MaxManifestBytes)+"']\n"), "it is larger than 1048576 bytes (1 MiB)"},
		{"name of 253", strings.Replace(podManifest("", ""), "name: web", "name: "+strings.Repeat("a", 253), 1), ""},
		{"name of 254", strings.Replace(podManifest("", ""), "name: web", "name: "+strings.Repeat("a", 254), 1), "metadata.name: Invalid value"},
		{"nesting", "apiVersion: " + strings.Repeat("[", 100_000), "is not valid YAML"},
		{"nested lists", "apiVersion: " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "is nested more than 100 levels deep"},
		{"a long text, many times", "a: &a '" + strings.Repeat("x", 100_000) + "'\nb: [" + strings.Repeat("*a, ", 100) + "]\n", "is too large when its aliases are written out"},
		{"5000 documents", strings.Repeat("--- {a: b}\n", 5000), "more than 4096 documents"},
		{"5000 items", "apiVersion: v1\nkind: List\nitems:\n" + repeat(5000, "- {apiVersion: v1, kind: ConfigMap, metadata: {name: c%d}}\n"), "too many objects: the limit is 4096"},
		{"annotations", strings.Replace(podManifest("", ""), "name: web", "name: web, annotations: {a: '"+strings.Repeat("x", 300_000)+"'}", 1), "metadata.annotations: Too long"},
		{"image", podManifest("", "") + "  - {name: b, image: " + strings.Repeat("a", 1025) + "}\n", "spec.containers[1].image: Too long"},
		{"mountPath", podManifest("", "    volumeMounts: [{name: a, mountPath: /"+strings.Repeat("a", 4095)+", subPath: "+strings.Repeat("a", 4096)+"}]\n"), "mountPath: Too long"},
		{"hostPath", podManifest("  volumes: [{name: a, hostPath: {path: /"+strings.Repeat("a", 4095)+"}}]\n", ""), "path: Too long"},
		{"257 host aliases", podManifest("  hostAliases:\n"+repeat(257, "  - {ip: 192.0.2.1, hostnames: [h%d]}\n"), ""), "spec.hostAliases: Too many"},
		{"searches", podManifest("  dnsConfig:\n    searches:\n"+repeat(33, "    - "+strings.Repeat("a", 63)+".h%d\n"), ""), "must have at most 2048 characters together"},
		{"quantity exponent", podManifest("", "    resources: {limits: {cpu: 1e1000000000}}\n"), "must be a quantity"},
		{"negative quantity exponent", podManifest("", "    resources: {limits: {cpu: '1e-2147483647'}}\n"), "must be a quantity"},
		{"long quantity", podManifest("", "    resources: {limits: {cpu: '"+strings.Repeat("9", 65)+"'}}\n"), "must be a quantity"},
		{"huge quantity", podManifest("", "    resources: {limits: {memory: 99999999999999999999999}}\n"), "must not be more than 1Ei"},
		{"negative quantity", podManifest("", "    resources: {limits: {memory: -1Mi}}\n"), "must not be negative"},
		{"huge port", podManifest("", "    ports: [{containerPort: 2147483647}]\n"), "must be between 1 and 65535"},
		{"ConfigMap of 1 MiB", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nbinaryData: {a: &a " + strings.Repeat("QUFB", 100_000) + ", b: *a, c: *a, d: *a}\n",
			"data: Too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			problems, _ := process([]byte(c.manifest), "")
			text := ""
			for _, p := range problems {
				if p.Severity == SeverityError {
					text += p.String() + "\n"
				}
				if strings.ContainsAny(p.String(), "\r\n") || len(p.String()) > 2000 {
					t.Errorf("a problem is not one short line: %q", p)
				}
			}
			if !strings.Contains(text, c.want) || (c.want == "") != (text == "") {
				t.Errorf("got %q, want %q in it", text, c.want)
			}
		})
	}
}

// TestNULAndKernelPaths: what the kernel would get a part of, or what would hide its own files, is
// refused with its path and the reason.
func TestNULAndKernelPaths(t *testing.T) {
	mount := func(path string) string {
		return podManifest("  volumes: [{name: a, emptyDir: {}}]\n", "    volumeMounts: [{name: a, mountPath: "+path+"}]\n")
	}
	const at, kernel = "spec.containers[0].", "must not be /proc, /sys or below them"
	for _, c := range []struct{ manifest, path, reason string }{
		{podManifest("", "    workingDir: \"/a\\0b\"\n"), at + "workingDir", "must not contain control characters"},
		{podManifest("", "    command: [\"a\\0b\"]\n"), at + "command[0]", "NUL"},
		{podManifest("", "    args: [a, \"a\\0b\"]\n"), at + "args[1]", "NUL"},
		{podManifest("", "    env: [{name: A, value: \"a\\0b\"}]\n"), at + "env[0].value", "NUL"},
		{podManifest("", "    livenessProbe: {exec: {command: [\"a\\0b\"]}}\n"), at + "livenessProbe.exec.command[0]", "NUL"},
		{mount("\"/a\\0b\""), at + "volumeMounts[0].mountPath", "control characters"},
		{mount("/proc"), at + "volumeMounts[0].mountPath", kernel},
		{mount("/proc/"), at + "volumeMounts[0].mountPath", kernel},
		{mount("/./proc"), at + "volumeMounts[0].mountPath", kernel},
		{mount("//proc//sys/kernel"), at + "volumeMounts[0].mountPath", kernel},
		{mount("proc/self"), at + "volumeMounts[0].mountPath", kernel},
		{mount("/sys"), at + "volumeMounts[0].mountPath", kernel},
		{mount("/sys/fs/cgroup"), at + "volumeMounts[0].mountPath", kernel},
		{mount("/proc/../sys"), at + "volumeMounts[0].mountPath", "must be a path without .."},
		{podManifest("", "    terminationMessagePath: /proc/x\n"), at + "terminationMessagePath", kernel},
		{mount("/process"), "", ""},
		{mount("/a/proc"), "", ""},
		{mount("/dev/shm"), "", ""},
	} {
		problems, _ := process([]byte(c.manifest), "")
		found := false
		for _, p := range problems {
			if p.Severity == SeverityError {
				found = found || c.path != "" && p.Path == c.path && strings.Contains(p.Message, c.reason)
				if c.path == "" {
					t.Errorf("%s: %s", c.manifest, p)
				}
			}
		}
		if c.path != "" && !found {
			t.Errorf("%s: %v, want %s: %s", c.manifest, problems, c.path, c.reason)
		}
	}
}

// hostile are manifests of up to 1 MiB that are made to cost much. want is in one of their problems.
var hostile = []struct{ name, manifest, want string }{
	{"empty containers", podManifest("", "")[:strings.Index(podManifest("", ""), "  containers")] + "  containers: [" + strings.Repeat("{},", 340_000) + "]\n", "has too many values"},
	{"some containers", strings.Replace(podManifest("", ""), "  containers:", "  initContainers: ["+strings.Repeat("{},", 30_000)+"]\n  containers:", 1), "only the first 16 were checked"},
	{"volumes", podManifest("  volumes: ["+strings.Repeat("{},", 30_000)+"]\n", ""), "only the first 64 were checked"},
	{"variables", podManifest("", "    env: ["+strings.Repeat("{},", 30_000)+"]\n"), "only the first 256 were checked"},
	{"ports of the host", podManifest("", "    ports:\n"+repeat(9000, "    - {containerPort: 1, hostPort: 1, hostIP: '1.%d'}\n")), "must be an IPv4 or IPv6 address"},
	{"labels", strings.Replace(podManifest("", ""), "name: web", "name: web, labels: {"+repeat(30_000, "'a b%d': '',")+"}", 1), "more problems"},
	{"annotations", strings.Replace(podManifest("", ""), "name: web", "name: web, annotations: {"+repeat(30_000, "'a b%d': '',")+"}", 1), "more problems"},
	{"unknown fields", podManifest("", "") + repeat(30_000, "x%d: 1\n"), "more problems"},
	{"long unknown fields", podManifest("", "") + repeat(1000, strings.Repeat("x", 900)+"%d: 1\n"), "more problems"},
	{"a long name above many values", podManifest("", "") + "? " + strings.Repeat("x", 500_000) + "\n: [" + strings.Repeat("1,", 30_000) + "]\n", "unknown field"},
	{"long names, nested", podManifest("", "") + nested(95, 900), "unknown field"},
	{"laughs", "a: &a [" + strings.Repeat("x,", 100) + "]\nb: &b [" + strings.Repeat("*a,", 100) + "]\nc: [" + strings.Repeat("*b,", 100) + "]\n", ""},
	{"documents", strings.Repeat("---\n{a: [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}\n", 4000), "more problems"},
	{"broken documents", strings.Repeat("---\n[\n", 4000), "more problems"},
	{"pods of a list", "apiVersion: v1\nkind: List\nitems:\n" + repeat(4000, "- {apiVersion: v1, kind: Pod, metadata: {name: '%d.'}}\n"), "more problems"},
	{"hosts", podManifest("  hostAliases: [{ip: 1.1.1.1, hostnames: ["+strings.Repeat("a_,", 30_000)+"]}]\n", ""), "more problems"},
	{"words", podManifest("", `    args: [`+strings.Repeat(`"\0",`, 30_000)+"]\n"), "more problems"},
	{"duplicates", repeat(50_000, "x%d: 1\n") + repeat(50_000, "x%d: 1\n"), "is given twice"},
}

// nested is a mapping in a mapping and so on, with long names.
func nested(depth, name int) string {
	return strings.Repeat(strings.Repeat("x", name)+": {", depth) + strings.Repeat("}", depth) + "\n"
}

// TestHostileManifestsAreCheap: what is done with a manifest of the greatest size allocates some
// 100 MB at most, most of it in the YAML library, and does not make an answer of many times its
// size. A reading of 350,000 empty containers took 34 s and 0.5 GB.
func TestHostileManifestsAreCheap(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			if len(c.manifest) > MaxManifestBytes {
				t.Fatalf("the manifest has %d bytes", len(c.manifest))
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			problems, _ := process([]byte(c.manifest), "")
			took := time.Since(began)
			runtime.ReadMemStats(&after)
			allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%d MB in %s", allocated, took)
			if allocated > 200 || took > 20*time.Second {
				t.Errorf("%d MB were allocated in %s", allocated, took)
			}
			bytes, found := 0, false
			for _, p := range problems {
				bytes += len(p.String())
				found = found || strings.Contains(p.String(), c.want)
			}
			if len(problems) > 2*maxProblems+1 || bytes > maxProblemBytes+10<<10 {
				t.Errorf("%d problems of %d bytes", len(problems), bytes)
			}
			if !found {
				t.Errorf("%q is not in %q", c.want, problems[max(0, len(problems)-2):])
			}
		})
	}
}

// TestValidateUnprepared: Validate does not depend on Parse and Default having been called.
func TestValidateUnprepared(t *testing.T) {
	m := Manifest{Pods: []*corev1.Pod{{}}, ConfigMaps: []*corev1.ConfigMap{{}}, Secrets: []*corev1.Secret{{}}}
	m.Pods[0].Spec.Containers = []corev1.Container{{Lifecycle: &corev1.Lifecycle{}, LivenessProbe: &corev1.Probe{}}}
	errs, warnings := Validate(&m)
	if len(errs) == 0 || InvalidError(errs) == nil || KindOf(InvalidError(errs)) != Invalid {
		t.Errorf("accepted an empty pod: %v, %v", errs, warnings)
	}
}

func TestInvalidError(t *testing.T) {
	one := field.ErrorList{field.Required(field.NewPath("spec", "containers"), "")}
	two := append(one, field.Invalid(field.NewPath("metadata", "name"), "A\nB", "is bad"))
	for want, errs := range map[string]field.ErrorList{
		"cannot accept the manifest: spec.containers: Required value":                                                               one,
		"cannot accept the manifest: 2 problems:\nspec.containers: Required value\nmetadata.name: Invalid value: \"A\\nB\": is bad": two,
	} {
		err := InvalidError(errs)
		if err == nil || err.Error() != want || KindOf(err) != Invalid || len(ProblemsOf(fmt.Errorf("wrapped: %w", err))) != len(errs) {
			t.Errorf("got %q of kind %s, want %q", err, KindOf(err), want)
		}
	}
	if err := InvalidError(nil); err != nil {
		t.Errorf("an error without problems: %v", err)
	}
	if got := ProblemsOf(Errorf(NotFound, "cannot find it")); len(got) != 1 || got[0].Severity != SeverityError || got[0].Message != "cannot find it" {
		t.Errorf("problems of another error: %+v", got)
	}
}

func TestDefaultPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"nginx":                          corev1.PullAlways,
		"nginx:latest":                   corev1.PullAlways,
		"nginx:1":                        corev1.PullIfNotPresent,
		"registry:5000/nginx":            corev1.PullAlways,
		"registry:5000/a/nginx:1.2":      corev1.PullIfNotPresent,
		"nginx@sha256:aaaa":              corev1.PullIfNotPresent,
		"registry:5000/nginx@sha256:aaa": corev1.PullIfNotPresent,
		"nginx:1@sha256:aaaa":            corev1.PullIfNotPresent,
	} {
		if got := defaultPullPolicy(image); got != want {
			t.Errorf("%s: got %s, want %s", image, got, want)
		}
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + ".b"
	yes, override := true, "other.example.com"
	for _, c := range []struct {
		name, host, fqdn string
		spec             corev1.PodSpec
		podName          string
		fails            bool
	}{
		{name: "name", podName: "web", host: "web"},
		{name: "long name", podName: long, host: strings.Repeat("a", 62)},
		{name: "hostname", podName: "web", spec: corev1.PodSpec{Hostname: "front"}, host: "front"},
		{name: "subdomain", podName: "web", spec: corev1.PodSpec{Subdomain: "sub"}, host: "web", fqdn: "web.sub.default.svc.cluster.local"},
		{name: "as fqdn", podName: "web", spec: corev1.PodSpec{Subdomain: "sub", SetHostnameAsFQDN: &yes},
			host: "web.sub.default.svc.cluster.local", fqdn: "web.sub.default.svc.cluster.local"},
		{name: "fqdn too long", podName: long, spec: corev1.PodSpec{Subdomain: "sub", SetHostnameAsFQDN: &yes}, fails: true},
		{name: "override", podName: "web", spec: corev1.PodSpec{HostnameOverride: &override, Subdomain: "sub"}, host: override},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: c.podName}, Spec: c.spec}
			host, fqdn, err := Hostname(p)
			if host != c.host || fqdn != c.fqdn || (err != nil) != c.fails {
				t.Errorf("got %q, %q, %v", host, fqdn, err)
			}
		})
	}
}
