package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/testimage"
)

// pods is a manifest of three pods that sleep, one for each restart policy.
const pods = `{apiVersion: v1, kind: Pod, metadata: {name: always}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "localhost/busybox:1", command: [sleep, "100000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: onfailure}, spec: {restartPolicy: OnFailure, terminationGracePeriodSeconds: 1, containers: [{name: main, image: "localhost/busybox:1", command: [sleep, "100000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: never}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{name: main, image: "localhost/busybox:1", command: [sleep, "100000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stopped}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "localhost/busybox:1", command: [sleep, "100000"]}]}}
`

// durable is a VM whose disk survives it.
type durable struct {
	*VM
	t     *testing.T
	image Image
	opts  Options
}

// newDurable boots a VM with a disk of its own and an image of busybox.
func newDurable(t *testing.T) *durable {
	needed(t)
	image, err := BuildImage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := &durable{t: t, image: image, opts: Options{Enable: true, Disk: filepath.Join(dir, "disk")}}
	if err := image.MakeDisk(t.Context(), d.opts.Disk); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, "pods.yaml")
	if err := os.WriteFile(manifest, []byte(pods), 0o600); err != nil {
		t.Fatal(err)
	}
	d.opts.Files = []File{{testimage.BusyboxFile(t), "/opt/busybox.tar"}, {manifest, "/opt/pods.yaml"}}
	d.VM = boot(t, d.opts)
	d.ctl("image", "load", "--tag", "localhost/busybox:1", "/opt/busybox.tar")
	return d
}

func (d *durable) ctl(args ...string) string {
	d.t.Helper()
	return must(d.t, d.VM, append([]string{"magikpodctl"}, args...)...)
}

// again boots the VM anew from its disk, whose file system must be whole.
func (d *durable) again() {
	d.t.Helper()
	if err := d.image.CheckDisk(d.t.Context(), d.opts.Disk); err != nil {
		d.t.Error(err)
	}
	d.VM = boot(d.t, d.opts)
}

// eventually waits until a pod's line of `list` says what it should.
func (d *durable) eventually(name string, want ...string) {
	d.t.Helper()
	var line string
	for deadline := time.Now().Add(time.Minute * time.Duration(Slowness())); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		for line = range strings.Lines(d.ctl("list")) {
			words := strings.Fields(line)
			if len(words) >= 3 && (words[0] == name || words[1] == name) && strings.Contains(line, want[0]) {
				return
			}
		}
	}
	d.t.Errorf("pod %s is not %s:\n%s", name, want, d.ctl("list"))
}

// sound wants a daemon that can do its work: run a pod, answer, and forget it without a trace.
func (d *durable) sound() {
	d.t.Helper()
	must(d.t, d.VM, "systemctl", "is-active", "magikpodd.service")
	text := `{apiVersion: v1, kind: Pod, metadata: {name: after}, spec: {restartPolicy: Never, containers: [{name: main, image: "localhost/busybox:1", command: [echo, works]}]}}`
	if err := d.WriteFile(d.t.Context(), "/opt/after.yaml", text); err != nil {
		d.t.Fatal(err)
	}
	d.ctl("run", "-f", "/opt/after.yaml", "--wait", "completed")
	if got := d.ctl("logs", "after"); got != "works\n" {
		d.t.Errorf("the log of a pod after the outage is %q", got)
	}
	d.ctl("delete", "after")
	d.consistent()
}

// consistent wants that only pods which are listed have files and units.
func (d *durable) consistent() {
	d.t.Helper()
	const look = `n=$(magikpodctl list -o name | wc -l)
for dir in /var/lib/magikpod/pods /run/magikpod/pods; do
	[ -d $dir ] || continue
	have=$(ls $dir | wc -l)
	[ $have -le $n ] || { echo "$n pods, but $dir has:"; ls -lR $dir | head -50; exit 1; }
done
find /var/lib/magikpod -name '*.tmp*' -o -name '.tmp*' | grep . && exit 1
exit 0`
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		r, err := d.Run(d.t.Context(), "sh", "-c", look)
		if err != nil {
			d.t.Fatal(err)
		}
		if r.Code == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.t.Errorf("the state is not sound: %s%s", r.Stdout, r.Stderr)
			return
		}
	}
}

// TestReboot: after a reboot in order, and after a power cut, pods are what their restart policies say.
func TestReboot(t *testing.T) {
	d := newDurable(t)
	d.ctl("run", "-f", "/opt/pods.yaml", "--wait", "ready")
	d.ctl("stop", "stopped")
	check := func() {
		t.Helper()
		d.eventually("always", "Running")
		d.eventually("onfailure", "Running")
		d.eventually("stopped", "Stopped")
		if list := d.ctl("list"); strings.Count(list, "Running") != 2 {
			t.Errorf("want two running pods, have\n%s", list)
		}
		d.ctl("exec", "always", "--", "true")
		d.sound()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute*time.Duration(Slowness()))
	defer cancel()
	if err := d.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	d.again()
	check()
	d.Close() // as a power cut
	d.again()
	check()
}

// TestPowerCut takes the power away in the middle of things: while the next pod is made when there
// are three, while the next is deleted when one is gone, while an image is loaded when that has
// worked once.
func TestPowerCut(t *testing.T) {
	d := newDurable(t)
	one, _, _ := strings.Cut(pods, "\n")
	one = strings.Replace(one, "always", "NAME", 1)
	for _, c := range []struct {
		name, script string
		done         int           // how many rounds are complete
		after        time.Duration // and then so far into the next one
	}{
		{"create", "while :; do i=$((i+1)); sed s/NAME/p$i/ /opt/one.yaml | magikpodctl run -f - || exit 1; echo >>/run/rounds; done", 3, 100 * time.Millisecond},
		{"delete", "for p in $(magikpodctl list -o name); do magikpodctl delete ${p#*/} || exit 1; echo >>/run/rounds; done; sleep 100000", 1, 50 * time.Millisecond},
		{"load", "while :; do magikpodctl image load --tag localhost/other:1 /opt/busybox.tar && magikpodctl image remove localhost/other:1 || exit 1; echo >>/run/rounds; done", 1, 150 * time.Millisecond},
	} {
		t.Logf("a power cut in the middle of %s", c.name)
		if err := d.WriteFile(t.Context(), "/opt/one.yaml", one); err != nil {
			t.Fatal(err)
		}
		p, err := d.Start(t.Context(), Command{Argv: []string{"sh", "-c", c.script}, Stdout: t.Output(), Stderr: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		must(t, d.VM, "sh", "-c", fmt.Sprintf("for i in $(seq 600); do [ $(cat /run/rounds 2>/dev/null | wc -l) -ge %d ] && exit 0; sleep 0.2; done; exit 1", c.done))
		time.Sleep(c.after)
		d.Close()
		if code, err := p.Wait(); err == nil {
			t.Errorf("%s had ended with %d before the power did", c.name, code)
		}
		d.again()
		list := d.ctl("list", "-o", "name")
		t.Logf("after the power cut:\n%s", list)
		if n := strings.Count(list, "\n"); c.name == "create" && n < c.done {
			t.Errorf("%d pods were made, %d are left", c.done, n)
		}
		d.sound()
		if got := d.ctl("image", "list"); !strings.Contains(got, "localhost/busybox:1") {
			t.Errorf("the image is gone:\n%s", got)
		}
	}
}
