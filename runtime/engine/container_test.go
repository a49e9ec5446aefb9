package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// TestStartError checks what is said of and left by a container that the OCI runtime cannot start.
func TestStartError(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("starterror", "true", "true")
		p.Spec.Containers[0].Command = []string{"no-such-command"}
		// It is created, and its start fails: the file is no program.
		p.Spec.Containers[1].Command = []string{"/etc/passwd"}
		w.create(p)
		for attempt := range 2 {
			for name, want := range map[string]string{"a": "no-such-command", "b": "/etc/passwd"} {
				err := w.RunContainer(t.Context(), w.configOf(p, name, attempt))
				if err == nil || !strings.Contains(err.Error(), `cannot start container "`+name+`": `) {
					t.Fatalf("%s: %v", name, err)
				}
				c := w.state(p).Containers[name]
				if c.Stage != pod.ContainerExited || c.Reason != pod.ReasonStartError || c.ExitCode != 128 || c.Attempt != attempt || c.FinishedAt.IsZero() ||
					name == "a" && !strings.Contains(c.Message, want) || c.Message == "" {
					t.Errorf("attempt %d: %+v (%v)", attempt, c, err)
				}
				if _, err := os.Stat(w.layersDir(p.UID) + "/" + name); err == nil {
					t.Error("the writable layer is left")
				}
				if list, err := w.units.List(t.Context(), units.ContainerService(p.Namespace, p.Name, name)); err != nil || len(list) > 0 {
					t.Errorf("units %v are left (%v)", list, err)
				}
			}
		}
	})
}

// TestInvalidContainer checks that what is wrong with the manifest is found before anything is
// done, and is no attempt.
func TestInvalidContainer(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("invalid", "true")
	w.up(p)
	w.await(p, "a", pod.ContainerExited)
	nonRoot := true
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsNonRoot: &nonRoot}
	err := w.RunContainer(t.Context(), w.configOf(p, "a", 1))
	if pod.KindOf(err) != pod.Invalid || !strings.Contains(err.Error(), "runAsNonRoot") {
		t.Errorf("%v (%s)", err, pod.KindOf(err))
	}
	if c := w.state(p).Containers["a"]; c.Attempt != 0 || c.Stage != pod.ContainerExited || c.ExitCode != 0 {
		t.Errorf("%+v", c)
	}
}

// TestRestart checks that each attempt has a fresh writable layer and a log of its own, and that
// the observation never goes back.
func TestRestart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("restart", `ls /made 2>/dev/null; touch /made; echo "line $$$$"; exit 1`)
		w.create(p)
		ids := map[string]bool{}
		for attempt := range 5 {
			w.run(p, "a", attempt)
			// The same attempt again is no other one.
			w.run(p, "a", attempt)
			c := w.await(p, "a", pod.ContainerExited)
			if c.Attempt != attempt || c.ExitCode != 1 || c.Reason != pod.ReasonError || ids[c.ID] {
				t.Fatalf("attempt %d: %+v", attempt, c)
			}
			ids[c.ID] = true
		}
		if lines := w.journal(p, "a", 5); len(lines) != 5 || strings.Join(lines, ",") != strings.Repeat("line 1,", 4)+"line 1" {
			t.Errorf("journal %q", lines)
		}
	})
}

// TestLogs checks that nothing is lost of what a container writes just before it ends.
func TestLogs(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		const count = 3000
		p := w.pod("logs", fmt.Sprintf("seq 1 %d; seq 1 %d >&2; echo -n end", count, count), "echo one >&2")
		w.up(p)
		w.await(p, "a", pod.ContainerExited)
		var want strings.Builder
		for i := range count {
			fmt.Fprintln(&want, i+1)
		}
		if out := w.journal(p, "a", count+1, "MAGIKPOD_STREAM=stdout", "MAGIKPOD_CONTAINER=a"); strings.Join(out, "\n") != want.String()+"end" {
			t.Errorf("%d lines of stdout, the last %q", len(out), out[len(out)-1])
		}
		if out := w.journal(p, "a", count, "MAGIKPOD_STREAM=stderr"); strings.Join(out, "\n")+"\n" != want.String() {
			t.Errorf("%d lines of stderr, the last %q", len(out), out[len(out)-1])
		}
		if out := w.journal(p, "b", 1, "PRIORITY=3"); len(out) != 1 || out[0] != "one" {
			t.Errorf("%q", out)
		}
	})
}

// TestLogsOfShortPod: a pod may be over before its pause process can do anything, and its lines are
// in the journal all the same.
func TestLogsOfShortPod(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	slow := filepath.Join(w.config.StateDir, "slow-agent")
	script := "#!/bin/sh\nif [ $1 = pause ]; then sleep 1; fi\nexec " + w.config.ShimPath + " \"$@\"\n"
	if err := os.WriteFile(slow, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	w.config.ShimPath = slow
	p := w.pod("short", "echo hello")
	w.up(p)
	w.await(p, "a", pod.ContainerExited)
	if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Fatal(err)
	}
	if out := w.journal(p, "a", 1, "MAGIKPOD_STREAM=stdout"); len(out) != 1 || out[0] != "hello" {
		t.Errorf("the log is %q", out)
	}
}

// TestLogFiles checks the other log driver.
func TestLogFiles(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("logfiles", "echo hello")
	config := w.sandboxOf(p)
	config.LogDir = w.config.StateDir + "/logs"
	if err := w.CreateSandbox(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	w.run(p, "a", 0)
	var data []byte
	for range 200 {
		if data, _ = os.ReadFile(config.LogDir + "/a/0.log"); len(data) > 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !strings.HasSuffix(string(data), " stdout F hello\n") {
		t.Errorf("log %q", data)
	}
}

// TestContainerView looks from inside: user, groups, read-only root, environment, host name, shared
// memory, processes, capabilities.
func TestContainerView(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		id, group, extra, readOnly, share := int64(1000), int64(1001), int64(2500), true, true
		p := w.pod("view", `id -u; id -g; id -G; touch /file 2>&1 | grep -o 'Read-only file system'; echo $NAME $HOSTNAME $HOME; hostname
			cat /vol/shared; df -k /dev/shm | tail -1 | awk '{print $2}'; cat /proc/1/cmdline | tr '\0' ' '; echo; cat /sub/file; cat /ro/file; touch /ro/x 2>&1 | grep -o 'Read-only file system'; sleep 1000`,
			"echo from b > /vol/shared; sleep 1000")
		p.Spec.ShareProcessNamespace = &share
		p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroups: []int64{extra}}
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &id, RunAsGroup: &group, ReadOnlyRootFilesystem: &readOnly}
		volume := w.config.StateDir + "/volume"
		if err := os.MkdirAll(volume+"/sub", 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"/file": "whole\n", "/sub/file": "part\n"} {
			if err := os.WriteFile(volume+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w.create(p, runtime.Tmpfs{Name: "mem", SizeBytes: 1 << 20})
		shared := runtime.Mount{SharedTmpfs: "mem", Destination: "/vol"}
		b, a := w.configOf(p, "b", 0), w.configOf(p, "a", 0)
		b.Mounts = []runtime.Mount{shared}
		if err := w.RunContainer(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		for range 500 { // until b has written
			if c := w.state(p).Containers["b"]; c.PID > 0 {
				if data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/vol/shared", c.PID)); len(data) > 0 {
					break
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		a.Mounts = []runtime.Mount{shared, {Source: volume, SubPath: "sub", Destination: "/sub"}, {Source: volume, Destination: "/ro", ReadOnly: true}}
		a.Env = []runtime.EnvVar{{Name: "NAME", Value: "value"}}
		if err := w.RunContainer(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		want := []string{"1000", "1001", "1001 2000 2500", "Read-only file system", "value view /home/app", "view", "from b", "65536", "magikshim reap ", "part", "whole", "Read-only file system"}
		lines := w.journal(p, "a", len(want))
		if strings.Join(lines, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestHostNamespaces checks that a pod gets the host's namespaces when it asks for them, and only then.
func TestHostNamespaces(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		for _, host := range []bool{true, false} {
			p := w.pod(fmt.Sprintf("host-%t", host), "sleep 1000")
			p.Spec.HostNetwork, p.Spec.HostPID, p.Spec.HostIPC = host, host, host
			w.up(p)
			pid := w.state(p).Containers["a"].PID
			for _, ns := range []string{"pid", "ipc", "uts", "net"} {
				inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
				own, err2 := os.Readlink("/proc/self/ns/" + ns)
				if err != nil || err2 != nil || (inside == own) != host {
					t.Errorf("hostNamespaces=%t: %s is %s, the host's is %s (%v, %v)", host, ns, inside, own, err, err2)
				}
			}
		}
	})
}

// TestLeftProcesses checks that processes which a container leaves behind in a PID namespace that
// is not its own end with it.
func TestLeftProcesses(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("left", "setsid sleep 98765 & exit 0", "sleep 1000")
		share := true
		p.Spec.ShareProcessNamespace = &share
		w.up(p)
		w.await(p, "a", pod.ContainerExited)
		for range 500 {
			if !runs("sleep\x0098765\x00") {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error("a process outlives its container")
	})
}
