package units

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/golden"
)

// The properties of each kind of unit, one a line. Run go test ./units -update when they are meant
// to change, and read the difference.
func TestProps(t *testing.T) {
	yes := true
	p := testPod("web", "log-shipper", "proxy")
	p.Namespace = "default"
	p.Spec.Containers[0].Resources = resources("cpu=2 memory=256Mi", "cpu=500m memory=64Mi")
	for i := range p.Spec.InitContainers {
		p.Spec.InitContainers[i].Resources = resources("cpu=100m memory=32Mi", "")
	}
	plain := testPod("plain")
	plain.Namespace = "default"
	privileged := plain.DeepCopy()
	privileged.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	names := Names("default", "web")
	launch := []string{"/usr/libexec/magikpod/magikshim", "launch", "--config", "/run/x.json"}

	for name, got := range map[string]string{
		"slices":             showAux(PodSlices(p, PodLimits(p))),
		"slices-plain":       showAux(PodSlices(plain, PodLimits(plain))),
		"pause":              show(PauseProps(PauseUnit{Namespace: p.Namespace, Pod: p.Name, Names: names, Argv: []string{"/usr/libexec/magikpod/magikshim", "pause"}})),
		"pause-share-pid":    show(PauseProps(PauseUnit{Namespace: plain.Namespace, Pod: plain.Name, Names: Names("default", "plain"), Argv: []string{"/bin/pause"}, Notify: true})),
		"container":          show(ContainerProps(ContainerUnit{Pod: p, Container: &p.Spec.Containers[0], Names: names, Argv: launch, Grace: 30 * time.Second, Stdout: "/run/out", Stderr: "/run/err"})),
		"container-sidecar":  show(ContainerProps(ContainerUnit{Pod: p, Container: &p.Spec.InitContainers[1], Names: names, Argv: launch, Grace: time.Second, StopAfter: []string{"main"}})),
		"container-no-grace": show(ContainerProps(ContainerUnit{Pod: plain, Container: &plain.Spec.Containers[0], Names: Names("default", "plain"), Argv: launch, StopSignal: syscall.SIGQUIT})),
		"container-special": show(ContainerProps(ContainerUnit{
			Pod: plain, Container: &plain.Spec.Containers[0], Names: Names("default", "plain"), Argv: launch, StopSignal: syscall.SIGQUIT, Grace: time.Minute, Delegate: true,
		})),
		"container-privileged": show(ContainerProps(ContainerUnit{Pod: privileged, Container: &privileged.Spec.Containers[0], Names: Names("default", "plain"), Argv: launch, Grace: time.Second})),
		"container-vm":         show(ContainerProps(ContainerUnit{Pod: privileged, Container: &p.Spec.Containers[0], Names: names, Argv: launch, Grace: time.Second, InVM: true})),
		"container-jail":       show(ContainerProps(ContainerUnit{Pod: plain, Container: &plain.Spec.Containers[0], Names: Names("default", "plain"), Argv: launch, Grace: time.Second, Jail: true})),
		"container-filtering": show(ContainerProps(ContainerUnit{
			Pod: plain, Container: &plain.Spec.Containers[0], Names: Names("default", "plain"), Argv: launch, Grace: time.Second, Jail: true, FiltersCalls: true,
		})),
		"vm": show(VMProps(VMUnit{
			Pod: p, Names: names, Argv: []string{"/usr/libexec/magikpod/magikvmm", "--config", "/run/x.json"}, PowerOff: 10 * time.Second,
		})),
		"update":         show(Limits{MemoryMax: 1 << 20, CPUQuota: time.Second}.UpdateProps()),
		"update-nothing": show(Limits{}.UpdateProps()),
	} {
		t.Run(name, func(t *testing.T) { golden.Check(t, filepath.Join("testdata", "props", name+".txt"), got) })
	}
}

func show(props []Property) string {
	var b strings.Builder
	for _, p := range props {
		b.WriteString(p.Name + "=" + p.Value.String() + "\n")
	}
	return b.String()
}

func showAux(aux []Aux) string {
	var b strings.Builder
	for _, a := range aux {
		b.WriteString("[" + a.Name + "]\n" + show(a.Props))
	}
	return b.String()
}
