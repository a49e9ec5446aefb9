package microvm_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
)

const server = "mkdir -p /www; echo it works > /www/index.html; touch /www/ready; httpd -f -p 8080 -h /www"

// get asks a pod for a page, until it answers.
func (w *world) get(url string) string {
	w.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var response *http.Response
		if response, err = (&http.Client{Timeout: 10 * time.Second}).Get(url); err == nil {
			defer response.Body.Close()
			data, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16))
			return string(data)
		}
	}
	w.t.Fatalf("%s: %v", url, err)
	return ""
}

// TestNetwork: a VM has the addresses of its pod.
func TestNetwork(t *testing.T) {
	w := newWorld(t)
	a, b := w.pod(server), w.pod("sleep 1000")
	result := w.up(a)
	for _, ip := range result.IPs {
		host := ip.String()
		if ip.Is6() {
			host = "[" + host + "]"
		}
		if text := w.get("http://" + host + ":8080/"); text != "it works\n" {
			t.Errorf("%s: %q", host, text)
		}
	}
	w.up(b)
	ip, gateway := result.IPs[0], result.Gateways[0]
	if text, _ := w.exec(b, "a", fmt.Sprintf("wget -q -O - -T 20 http://%s:8080/", ip)); text != "it works\n" {
		t.Errorf("from one VM to another: %q", text)
	}
	text, _ := w.exec(a, "a", "ip -o -4 addr show dev eth0; ip route")
	if !strings.Contains(text, ip.String()+"/") || !strings.Contains(text, "default via "+gateway.String()) {
		t.Errorf("the network of the VM: %s", text)
	}
}

// TestProbes: probes are made in the VM.
func TestProbes(t *testing.T) {
	w := newWorld(t)
	p := w.pod(server)
	ip := w.up(p).IPs[0].String()
	w.get("http://" + ip + ":8080/")
	const timeout = 20 * time.Second
	for _, c := range []struct {
		name  string
		probe probe.Probe
		ok    bool
		part  string
	}{
		{"exec", probe.Probe{Exec: []string{"test", "-e", "/www/ready"}, Timeout: timeout}, true, ""},
		{"exec that fails", probe.Probe{Exec: []string{"sh", "-c", "echo not yet; exit 1"}, Timeout: timeout}, false, "not yet"},
		{"exec that takes too long", probe.Probe{Exec: []string{"sleep", "100"}, Timeout: time.Second}, false, `command "sleep 100" timed out`},
		{"exec that says nothing", probe.Probe{Exec: []string{"sh", "-c", "exit 4"}, Timeout: timeout}, false, `command "sh -c exit 4" exited with code 4`},
		{"http", probe.Probe{HTTP: &probe.HTTP{Host: ip, Port: 8080, Path: "/index.html"}, Timeout: timeout}, true, ""},
		{"http with headers", probe.Probe{HTTP: &probe.HTTP{Scheme: "http", Host: ip, Port: 8080, Path: "/", Headers: []probe.Header{{Name: "X-A", Value: "b"}}}, Timeout: timeout}, true, ""},
		{"http of no page", probe.Probe{HTTP: &probe.HTTP{Host: ip, Port: 8080, Path: "/none"}, Timeout: timeout}, false, "HTTP probe failed with statuscode: 404"},
		{"tcp", probe.Probe{TCP: &probe.TCP{Host: ip, Port: 8080}, Timeout: timeout}, true, ""},
		{"tcp of nobody", probe.Probe{TCP: &probe.TCP{Host: ip, Port: 81}, Timeout: timeout}, false, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok, message, err := w.manager.Probe(t.Context(), pod.RefOf(p), "a", c.probe)
			if err != nil || ok != c.ok || !strings.Contains(message, c.part) {
				t.Errorf("%t, %q, %v; want %t and %q", ok, message, err, c.ok, c.part)
			}
		})
	}
	if ok, message, err := w.manager.Probe(t.Context(), pod.RefOf(p), "a", probe.Probe{Exec: []string{"/no/such/program"}, Timeout: timeout}); pod.KindOf(err) != pod.Invalid {
		t.Errorf("of a program that is not there: %t, %q, %v; want an error of kind %s", ok, message, err, pod.Invalid)
	}
	if _, _, err := w.manager.Probe(t.Context(), pod.RefOf(p), "none", probe.Probe{Exec: []string{"true"}, Timeout: timeout}); pod.KindOf(err) != pod.NotFound {
		t.Errorf("of a container that is not there: %v", err)
	}
}

// TestStats: what the containers use is counted in the VM.
func TestStats(t *testing.T) {
	w := newWorld(t)
	p := w.pod("while :; do :; done", "sleep 1000")
	p.Spec.Containers[1].Resources = corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: quantity("48Mi")}}
	w.up(p)
	use := func() map[string]pod.ResourceUse {
		t.Helper()
		use, err := w.manager.ContainerStats(t.Context(), pod.RefOf(p))
		if err != nil {
			t.Fatal(err)
		}
		return use
	}
	first := use()
	time.Sleep(time.Second)
	second := use()
	if busy := *second["a"].CPUNanos - *first["a"].CPUNanos; busy < uint64(100*time.Millisecond) {
		t.Errorf("a container that is busy has used %s in a second", time.Duration(busy))
	}
	if idle := second["b"]; *idle.Processes != 1 || *idle.MemoryBytes == 0 || idle.MemoryLimitBytes != 48<<20 {
		t.Errorf("a container that sleeps uses %+v", idle)
	}
	if len(second) != 2 {
		t.Errorf("%v", second)
	}
}

// TestMuchOutput: more goes through than any buffer between a container and the host holds, at once
// and in pieces of any size.
func TestMuchOutput(t *testing.T) {
	w := newWorld(t)
	p := w.pod("sleep 1000")
	w.up(p)
	for _, size := range []int{60000, 65536, 100000, 3000000} {
		if text, _ := w.exec(p, "a", fmt.Sprintf("head -c %d /dev/zero", size)); len(text) != size {
			t.Errorf("%d bytes came of %d", len(text), size)
		}
	}
}
