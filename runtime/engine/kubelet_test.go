package engine

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// The second user of the engine: one that decides nothing, as a CRI server, for which a kubelet
// decides. It gives each sandbox an ID of its own and a slice below the cgroup parent that it is
// given, and makes, stops and removes containers one by one.

// kubeParent is the cgroup parent of all of its pods.
const kubeParent = "kubetest-burstable.slice"

// kubeLayout names units by the sandbox's ID.
type kubeLayout struct{}

func (kubeLayout) base(ref pod.Ref) string {
	return strings.TrimSuffix(kubeParent, ".slice") + "-" + string(ref.UID)
}

func (l kubeLayout) Names(ref pod.Ref) units.PodNames {
	return units.PodNames{Slice: l.base(ref) + ".slice", Pause: l.base(ref) + "-pause.service", VM: l.base(ref) + "-vm.service"}
}

func (l kubeLayout) Container(ref pod.Ref, container string) string {
	return l.base(ref) + "-" + container + ".service"
}

func (l kubeLayout) Slices(ref pod.Ref, p *corev1.Pod, limits units.Limits) []units.Aux {
	return []units.Aux{{Name: l.base(ref) + ".slice", Props: units.SliceProps(p, limits)}}
}

// kube is the user.
type kube struct {
	*world
	logs string
}

func newKube(t *testing.T) *kube {
	onSystemd(t)
	w := newWorld(t, "", nil, func(c *Config) { c.Layout = kubeLayout{} })
	k := &kube{world: w, logs: filepath.Join(w.config.StateDir, "logs")}
	t.Cleanup(func() { // the parent is not the engine's
		left, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "kubetest*").Output()
		for line := range strings.Lines(string(left)) {
			if name := strings.Fields(line)[0]; name != "kubetest.slice" && name != kubeParent {
				t.Errorf("a unit is left: %s (%v)", line, err)
			}
		}
		_ = exec.Command("systemctl", "stop", "kubetest.slice").Run() // there may be none
	})
	return k
}

// sandbox makes one of a pod, and returns what names it.
func (k *kube) sandbox(p *corev1.Pod, id types.UID) pod.Ref {
	k.t.Helper()
	config := k.sandboxOf(p)
	config.ID, config.LogDir = id, k.logs
	if err := k.CreateSandbox(k.t.Context(), config); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { // where the test has failed
		ref := config.Ref()
		_, _ = k.DeleteSandbox(context.Background(), ref, 0)
		_ = k.Forget(context.Background(), ref)
	})
	return config.Ref()
}

// start runs one attempt at a container that writes a line.
func (k *kube) start(p *corev1.Pod, sandbox pod.Ref, name string, attempt int, log string) {
	k.t.Helper()
	container := &corev1.Container{Name: name, Command: []string{"sh", "-c", "echo " + log + "; exec sleep 1000"}}
	config := runtime.ContainerConfig{SandboxID: sandbox.UID, Pod: p, Container: container, Attempt: attempt, Image: k.image, LogPath: log}
	if err := k.RunContainer(k.t.Context(), config); err != nil {
		k.t.Fatal(err)
	}
	file := filepath.Join(k.logs, log)
	for range 500 {
		if text, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(text), " stdout F "+log+"\n") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	text, err := os.ReadFile(file)
	k.t.Fatalf("%s has %q (%v), and not the line of its container", file, text, err)
}

// want checks how a container is.
func (k *kube) want(sandbox pod.Ref, name string, stage pod.ContainerStage, attempt int) {
	k.t.Helper()
	state, err := k.Observe(k.t.Context(), sandbox)
	if c := state.Containers[name]; err != nil || c.Stage != stage || c.Attempt != attempt {
		k.t.Errorf("container %s of sandbox %s is %+v (%v), want attempt %d to be %s", name, sandbox.UID, c, err, attempt, stage)
	}
	dir := filepath.Join(cgroup.Root(), "kubetest.slice", kubeParent, kubeLayout{}.Names(sandbox).Slice, kubeLayout{}.Container(sandbox, name))
	if _, err := os.Stat(dir); stage == pod.ContainerRunning && err != nil {
		k.t.Errorf("the container is not in the cgroup that was asked for: %v", err)
	}
}

func kubePod() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube", Name: "web", UID: "11112222-3333-4444-5555-666677778888"}}
}

// TestKubelet: containers of a sandbox are made, started, stopped and removed one by one, the first
// attempt has the number that was asked for, and logs are where they were wanted. A later sandbox
// of the same pod knows nothing of it.
func TestKubelet(t *testing.T) {
	k := newKube(t)
	p := kubePod()
	one := k.sandbox(p, "one")
	k.start(p, one, "app", 3, "app/mine-3.log")
	k.start(p, one, "helper", 0, "deep/er/helper.log")
	k.want(one, "app", pod.ContainerRunning, 3)
	if status, err := k.Exec(t.Context(), one, "app", shell("exit 7")); err != nil || status.Code != 7 {
		t.Errorf("exec: %+v, %v", status, err)
	}
	if use, err := k.ContainerStats(t.Context(), one); err != nil || len(use) != 2 {
		t.Errorf("stats: %v, %v", use, err)
	}
	if err := k.RemoveContainer(t.Context(), one, "app"); pod.KindOf(err) != pod.Conflict {
		t.Errorf("a container that runs was removed: %v", err)
	}
	if err := k.StopContainer(t.Context(), one, "app", 0); err != nil {
		t.Fatal(err)
	}
	k.want(one, "app", pod.ContainerExited, 3)
	for range 2 { // the second time there is none
		if err := k.RemoveContainer(t.Context(), one, "app"); err != nil {
			t.Fatal(err)
		}
	}
	k.want(one, "app", "", 0)
	k.want(one, "helper", pod.ContainerRunning, 0)
	k.start(p, one, "app", 4, "app/mine-4.log")
	k.want(one, "app", pod.ContainerRunning, 4)
	k.remove(one)

	two := k.sandbox(p, "two")
	if state, err := k.Observe(t.Context(), two); err != nil || len(state.Containers) > 0 {
		t.Errorf("a new sandbox has %+v (%v)", state.Containers, err)
	}
	k.start(p, two, "app", 5, "app/mine-5.log")
	k.want(two, "app", pod.ContainerRunning, 5)
	k.remove(two)
	if left := k.leftovers(); left != "" {
		t.Errorf("left:\n%s", left)
	}
}

// remove stops and removes a sandbox.
func (k *kube) remove(sandbox pod.Ref) {
	k.t.Helper()
	if _, err := k.DeleteSandbox(k.t.Context(), sandbox, 0); err != nil {
		k.t.Fatal(err)
	}
	if err := k.Forget(k.t.Context(), sandbox); err != nil {
		k.t.Fatal(err)
	}
}

// TestKubeletTwoSandboxes: two sandboxes of one pod run side by side, as when a kubelet replaces
// one whose end it does not await. The end of one is not the other's, and a later server finds
// them.
func TestKubeletTwoSandboxes(t *testing.T) {
	k := newKube(t)
	p := kubePod()
	old, young := k.sandbox(p, "old"), k.sandbox(p, "young")
	k.start(p, old, "app", 0, "app/0.log")
	k.start(p, young, "app", 1, "app/1.log")
	if err := k.StopContainer(t.Context(), old, "app", 0); err != nil {
		t.Fatal(err)
	}
	k.want(old, "app", pod.ContainerExited, 0)
	k.want(young, "app", pod.ContainerRunning, 1)
	k.nextDaemon(old)
	if err := k.Adopt(t.Context(), young); err != nil {
		t.Fatal(err)
	}
	k.want(old, "app", pod.ContainerExited, 0)
	k.want(young, "app", pod.ContainerRunning, 1)
	if ref, err := k.Named(young.UID); err != nil || ref != young {
		t.Errorf("sandbox %s is called %+v (%v)", young.UID, ref, err)
	}
	k.remove(old)
	k.want(young, "app", pod.ContainerRunning, 1)
	k.start(p, young, "app", 2, "app/2.log")
	k.want(young, "app", pod.ContainerRunning, 2)
	k.remove(young)
	if left := k.leftovers(); left != "" {
		t.Errorf("left:\n%s", left)
	}
}

// TestLogPathStays: a log is written nowhere but below the log directory.
func TestLogPathStays(t *testing.T) {
	m := &Manager{}
	for _, path := range []string{"../x.log", "/x.log", "a/../../x.log"} {
		config := runtime.ContainerConfig{Container: &corev1.Container{Name: "a"}, LogPath: path}
		if _, err := m.prepare(t.Context(), nil, config); pod.KindOf(err) != pod.Invalid {
			t.Errorf("%s: %v", path, err)
		}
	}
}
