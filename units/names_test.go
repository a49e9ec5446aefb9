package units

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/pod"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 253)
	dashes := strings.Repeat("a-", 126) + "a"
	tests := []struct {
		ns, pod, container  string
		slice, service, cut string
	}{
		{"default", "web", "nginx", "magikpod-default-web.slice", "magikpod-default-web-nginx.service", ""},
		{"default", "my-web", "c", `magikpod-default-my\x2dweb.slice`, `magikpod-default-my\x2dweb-c.service`, ""},
		{"kube-x", "a.b", "a-b", `magikpod-kube\x2dx-a.b.slice`, `magikpod-kube\x2dx-a.b-a\x2db.service`, ""},
		{"default", "web", "pause", "magikpod-default-web.slice", `magikpod-default-web-\x70ause.service`, ""},
		{"default", "web", "vm", "magikpod-default-web.slice", `magikpod-default-web-\x76m.service`, ""},
		{"default", long, "c", "", "", "magikpod-default-" + long[:76] + "_"},
		{"default", dashes, "c", "", "", "magikpod-default-" + strings.Repeat(`a\x2d`, 15) + "a_"},
	}
	for _, tt := range tests {
		names := Names(tt.ns, tt.pod)
		service := ContainerService(tt.ns, tt.pod, tt.container)
		if tt.cut == "" && (names.Slice != tt.slice || service != tt.service) {
			t.Errorf("%v: got %s and %s", tt, names.Slice, service)
		}
		if tt.cut != "" && (!strings.HasPrefix(names.Slice, tt.cut) || len(names.Slice) > 255) {
			t.Errorf("%s (%d bytes) does not begin with %s", names.Slice, len(names.Slice), tt.cut)
		}
	}
	if got, want := Names("default", "web"), (PodNames{
		Slice: "magikpod-default-web.slice",
		Pause: "magikpod-default-web-pause.service",
		VM:    "magikpod-default-web-vm.service",
	}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := OrderSlice("default", "web", "log-x"), `magikpod-default-web-order\x2dlog\x2dx.slice`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := SlicePath(`magikpod-default-my\x2dweb.slice`), `magikpod.slice/magikpod-default.slice/magikpod-default-my\x2dweb.slice`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestKindOf(t *testing.T) {
	names := Names("name-space", "pod.a-b")
	for unit, want := range map[string]unitKind{
		sliceOf(names.Slice): kindNamespaceSlice,
		names.Slice:          kindPodSlice,
		names.Pause:          kindPause,
		names.VM:             kindVM,
		ContainerService("name-space", "pod.a-b", "pause"):   kindContainer,
		ContainerService("name-space", "pod.a-b", "vm"):      kindContainer,
		ContainerService("name-space", "pod.a-b", "order-c"): kindContainer,
		OrderSlice("name-space", "pod.a-b", "c-d"):           kindOrder,
		Names("default", "web.service").Slice:                kindPodSlice,
		Names("default", "web.slice").Pause:                  kindPause,
	} {
		if got := kindOf(unit); got != want {
			t.Errorf("%s: got %q, want %q", unit, got, want)
		}
	}
	for _, unit := range []string{"magikpod.slice", "magikpodd.service", "magikpod-.slice", "magikpod-a-b-c-d.service", "magikpod-a-b.service", "magikpod-a-b-c.slice", "ssh.service", "magikpod-a-b-c.socket", "magikpod-a-b-c.service.slice", "magikpod-"} {
		if got := kindOf(unit); got != "" {
			t.Errorf("%s: got %q", unit, got)
		}
	}
}

// Part by part, what we escape is what systemd-escape(1) escapes.
func TestSystemdEscape(t *testing.T) {
	program, err := exec.LookPath("systemd-escape")
	if err != nil {
		t.Skip("systemd-escape is not installed (try: apt-get install systemd)")
	}
	for _, name := range []string{"a", "a-b", "a--b", "a.b-c.d", "0-9", "x.y.z"} {
		out, err := exec.Command(program, "--", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.TrimSpace(string(out)); part(name, 255) != want {
			t.Errorf("%s: got %s, systemd-escape says %s", name, part(name, 255), want)
		}
	}
}

// Two different containers never have one unit name; all names are valid for systemd, and the
// parent of a slice is the one that systemd computes.
func FuzzNames(f *testing.F) {
	a63, dashes := strings.Repeat("a", 63), strings.Repeat("a-", 31)+"a"
	for _, s := range [][6]string{
		{"default", "a-b", "c", "default", "a", "b-c"},
		{"a-b", "c", "d", "a", "b-c", "d"},
		{"default", "web", "pause", "default", "web", "x70ause"},
		{a63, a63 + "." + a63 + "." + a63 + "." + a63[:61], a63, a63, a63 + "." + a63 + "." + a63 + "." + a63[:60], a63},
		{dashes, dashes + "." + dashes, dashes, dashes, dashes + "." + dashes[:62] + "b", dashes},
		{"default", "web", "order-a", "default", "web-order", "a"},
	} {
		f.Add(s[0], s[1], s[2], s[3], s[4], s[5])
	}
	f.Fuzz(func(t *testing.T, ns1, pod1, c1, ns2, pod2, c2 string) {
		for _, s := range [][3]string{{ns1, pod1, c1}, {ns2, pod2, c2}} {
			if pod.ValidateNamespace(s[0]) != nil || pod.ValidateName(s[1]) != nil || pod.ValidateContainerName(s[2]) != nil {
				t.Skip()
			}
			checkNames(t, s[0], s[1], s[2])
		}
		same := [3]string{ns1, pod1, c1} == [3]string{ns2, pod2, c2}
		if (ContainerService(ns1, pod1, c1) == ContainerService(ns2, pod2, c2)) != same {
			t.Errorf("%q %q %q and %q %q %q have the same service", ns1, pod1, c1, ns2, pod2, c2)
		}
		if (OrderSlice(ns1, pod1, c1) == OrderSlice(ns2, pod2, c2)) != same {
			t.Errorf("%q %q %q and %q %q %q have the same ordering slice", ns1, pod1, c1, ns2, pod2, c2)
		}
		if (Names(ns1, pod1) == Names(ns2, pod2)) != (ns1 == ns2 && pod1 == pod2) {
			t.Errorf("%q %q and %q %q have the same names", ns1, pod1, ns2, pod2)
		}
		if n := Names(ns2, pod2); ContainerService(ns1, pod1, c1) == n.Pause || ContainerService(ns1, pod1, c1) == n.VM {
			t.Errorf("container %q %q %q has the name of a pod's own unit", ns1, pod1, c1)
		}
	})
}

func checkNames(t *testing.T, ns, name, container string) {
	n := Names(ns, name)
	namespace := sliceOf(n.Slice)
	kinds := map[string]unitKind{
		namespace: kindNamespaceSlice, n.Slice: kindPodSlice, n.Pause: kindPause, n.VM: kindVM,
		ContainerService(ns, name, container): kindContainer, OrderSlice(ns, name, container): kindOrder,
	}
	if len(kinds) != 6 {
		t.Errorf("one name stands for two units: %v", kinds)
	}
	for unit, kind := range kinds {
		if len(unit) > 255 {
			t.Errorf("%s has %d bytes", unit, len(unit))
		}
		for _, c := range []byte(unit) {
			if !strings.ContainsRune(`abcdefghijklmnopqrstuvwxyz0123456789.-_\`, rune(c)) {
				t.Errorf("%s has a %q", unit, c)
			}
		}
		if got := kindOf(unit); got != kind {
			t.Errorf("%s: got the kind %q, want %q", unit, got, kind)
		}
	}
	if sliceOf(namespace) != rootSlice || sliceOf(n.Pause) != n.Slice {
		t.Errorf("wrong parents: %+v", n)
	}
	if want := fmt.Sprintf("%s/%s/%s", rootSlice, namespace, n.Slice); SlicePath(n.Slice) != want {
		t.Errorf("got %s, want %s", SlicePath(n.Slice), want)
	}
}
