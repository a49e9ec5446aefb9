package microvm_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// TestLife: a pod runs in a VM, from its start to its end.
func TestLife(t *testing.T) {
	w := newWorld(t)
	p := w.pod(`trap 'echo bye; exit 7' TERM; echo hello from $(uname -r) $(hostname); echo oops >&2; while :; do sleep 0.1; done`, "exit 5")
	began := time.Now()
	w.up(p)
	t.Logf("the pod was up after %s", time.Since(began).Round(time.Millisecond))
	if text := w.log(p, "a", 0, "hello from"); !strings.Contains(text, " "+p.Name) {
		t.Errorf("the host name is not in %s", text)
	}
	if text := w.log(p, "a", 0, "stderr F oops"); !strings.Contains(text, "stdout F hello") {
		t.Error(text)
	}
	if c := w.await(p, "b", pod.ContainerExited); c.ExitCode != 5 || c.Reason != pod.ReasonError {
		t.Errorf("exit 5: %+v", c)
	}
	text, status := w.exec(p, "a", "echo in $HOSTNAME; exit 3")
	if text != "in "+p.Name+"\n" || status.Code != 3 {
		t.Errorf("exec: %q, %+v", text, status)
	}
	began = time.Now()
	if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), "a", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if c := w.await(p, "a", pod.ContainerExited); c.ExitCode != 7 || time.Since(began) > 20*time.Second {
		t.Errorf("stopped after %s: %+v", time.Since(began), c)
	}
	w.log(p, "a", 0, "bye")
	if err := w.attempt(p, "b", 1); err != nil {
		t.Fatal(err)
	}
	if c := w.await(p, "b", pod.ContainerExited); c.ExitCode != 5 || c.Attempt != 1 {
		t.Errorf("the next attempt: %+v", c)
	}
	began = time.Now()
	if _, err := w.manager.DeleteSandbox(t.Context(), pod.RefOf(p), time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("the pod was down after %s", time.Since(began).Round(time.Millisecond))
}

// TestStopSignals: a container is stopped by the signal that its image or its manifest names; those
// of systemd as a container are real-time signals.
func TestStopSignals(t *testing.T) {
	w := newWorld(t)
	w.image.Config.StopSignal = "SIGRTMIN+3"
	script := "trap 'exit 3' 34; trap 'exit 4' 37; trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
	p := w.pod(script, script)
	first := corev1.Signal("SIGRTMIN")
	p.Spec.Containers[1].Lifecycle = &corev1.Lifecycle{StopSignal: &first}
	w.up(p)
	for name, code := range map[string]int{"a": 4, "b": 3} {
		w.log(p, name, 0, "ready")
		if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), name, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if c := w.await(p, name, pod.ContainerExited); c.ExitCode != code {
			t.Errorf("container %s: %+v, want exit code %d", name, c, code)
		}
	}
}

// A VM that dies takes its containers along, and that is seen at once; so is the death of a
// container's stand-in.
func TestDeath(t *testing.T) {
	w := newWorld(t)
	p := w.pod("sleep 1000", "sleep 1000")
	w.up(p)
	proxy := w.observe(p).Containers["b"].PID
	if err := syscall.Kill(proxy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if c := w.await(p, "b", pod.ContainerExited); c.Signal != int(syscall.SIGKILL) {
		t.Errorf("the container whose proxy was killed: %+v", c)
	}
	if text, _ := w.exec(p, "a", "ps | grep -c '[s]leep 1000'"); strings.TrimSpace(text) != "1" {
		t.Errorf("%s containers run in the VM after the proxy of one was killed", text)
	}
	if c := w.observe(p).Containers["a"]; c.Stage != pod.ContainerRunning {
		t.Errorf("the other container: %+v", c)
	}
	w.kill(p)
	began := time.Now()
	for w.observe(p).Sandbox.Stage != pod.SandboxDead {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("nobody has seen the end of the VM: %+v", w.observe(p))
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("seen %s after the kill", time.Since(began).Round(time.Millisecond))
	if c := w.await(p, "a", pod.ContainerExited); c.ExitCode == 0 {
		t.Errorf("the container of the VM that has died: %+v", c)
	}
}

// TestRestart: a VM goes on without the daemon, and the next one picks it up.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	p := w.pod("trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done", "sleep 1000")
	w.create(p)
	if err := w.attempt(p, "a", 0); err != nil {
		t.Fatal(err)
	}
	w.log(p, "a", 0, "line 1")
	w.restart()
	w.log(p, "a", 0, "line 20")
	if c := w.observe(p).Containers["a"]; c.Stage != pod.ContainerRunning {
		t.Fatalf("after the restart: %+v", c)
	}
	if err := w.attempt(p, "b", 0); err != nil {
		t.Fatal(err)
	}
	if text, status := w.exec(p, "b", "echo here"); text != "here\n" || status.Code != 0 {
		t.Errorf("%q, %+v", text, status)
	}
	if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), "a", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if c := w.await(p, "a", pod.ContainerExited); c.ExitCode != 4 {
		t.Errorf("stopped by the next daemon: %+v", c)
	}
	w.restart()
	w.kill(p)
	for end := time.Now().Add(10 * time.Second); w.observe(p).Sandbox.Stage != pod.SandboxDead; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the death of an adopted VM is not seen")
		}
	}
}

// A container that uses up its memory in the VM is said to be out of memory on the host.
func TestOutOfMemory(t *testing.T) {
	w := newWorld(t)
	p := w.pod("x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}")
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: quantity("32Mi")}}
	w.up(p)
	if c := w.await(p, "a", pod.ContainerExited); c.Reason != pod.ReasonOOMKilled || c.ExitCode != 137 {
		t.Errorf("%+v", c)
	}
}
