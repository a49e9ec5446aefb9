package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// point is what something took when so many pods ran.
type point struct {
	pods int
	took time.Duration
}

// window is how many pods a point of a curve is the median of.
const window = 32

// How often each is measured: at every so manyth pod.
const (
	everyAsk   = 4 // list and exec
	everyFloor = 8
)

// dense is what was measured while pods were started one after the other, and of all of them.
type dense struct {
	pods                               int
	start, list, exec, floor, bareExec []point
	again                              []point // starts after all pods were deleted
	restart                            times
	down                               time.Duration // a pod
	daemonAlone, initAlone             process
	daemon, init, beside               process
}

// densely starts *density pods, one after the other.
func densely(ctx context.Context, ground *floor, p *program) (*dense, error) {
	d := &dense{pods: *density}
	list, err := processes()
	if err != nil {
		return nil, err
	}
	d.daemonAlone, d.initAlone = sum(list, isDaemon), sum(list, isInit)
	if err := d.grow(ctx, ground); err != nil {
		return nil, err
	}
	if list, err = processes(); err != nil {
		return nil, err
	}
	d.daemon, d.init = sum(list, isDaemon), sum(list, isInit)
	d.beside = sum(list, func(p process) bool { return inPod("default")(p) && !ofContainer(p) })
	for range 2 {
		took, err := timed(ctx, d.restarted)
		if err != nil {
			return nil, err
		}
		d.restart = append(d.restart, took)
		if err := d.settle(ctx, p); err != nil {
			return nil, err
		}
	}
	took, err := timed(ctx, run("magikpodctl", "delete", "--all"))
	if err != nil {
		return nil, err
	}
	d.down = took / time.Duration(d.pods)
	for n := range min(window, d.pods) {
		if err := startPod(ctx, n+1, &d.again); err != nil {
			return nil, err
		}
	}
	return d, command(ctx, "magikpodctl", "delete", "--all")
}

func podName(n int) string { return fmt.Sprintf("p%d", n) }

// startPod starts the nth pod.
func startPod(ctx context.Context, n int, into *[]point) error {
	file := filepath.Join(work, "dense.yaml")
	if err := os.WriteFile(file, []byte(sleeping.manifest(podName(n), 1)), 0o600); err != nil {
		return err
	}
	return at(ctx, n, into, run("magikpodctl", "run", "-f", file))
}

// at measures what is done while n pods run.
func at(ctx context.Context, n int, into *[]point, do func(context.Context) error) error {
	took, err := timed(ctx, do)
	if err == nil {
		*into = append(*into, point{n, took})
	}
	return err
}

func (d *dense) grow(ctx context.Context, ground *floor) error {
	for n := 1; n <= d.pods; n++ {
		if err := startPod(ctx, n, &d.start); err != nil {
			return err
		}
		if n%everyAsk == 0 {
			if err := at(ctx, n, &d.list, run("magikpodctl", "list")); err != nil {
				return err
			}
			if err := at(ctx, n, &d.exec, run("magikpodctl", "exec", podName(n), "--", "true")); err != nil {
				return err
			}
		}
		if n%everyFloor == 0 {
			if err := at(ctx, n, &d.floor, ground.start); err != nil {
				return err
			}
			if err := at(ctx, n, &d.bareExec, ground.exec); err != nil {
				return err
			}
			if err := ground.down(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// restarted restarts the daemon and asks for the list, which must be whole.
func (d *dense) restarted(ctx context.Context) error {
	if err := command(ctx, "systemctl", "restart", "magikpodd.service"); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "magikpodctl", "list").Output()
	if lines := bytes.Count(out, []byte("\n")); err == nil && lines != d.pods+1 { // and the heading
		err = fmt.Errorf("the list of %d pods has %d lines", d.pods, lines)
	}
	return err
}

// settle waits until the daemon has seen that all pods run.
func (d *dense) settle(ctx context.Context, p *program) error {
	running := 0
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		list, err := p.client.List(ctx, "default")
		if err != nil {
			return err
		}
		running = 0
		for _, s := range list {
			if s.Phase == "Running" && s.Ready == 1 {
				running++
			}
		}
		if running == d.pods {
			return nil
		}
	}
	return fmt.Errorf("%d pods of %d run after a restart of the daemon", running, d.pods)
}

// curve has a point for each window: the median of what lies in it.
func curve(points []point) []point {
	var result []point
	for len(points) > 0 {
		end := (points[0].pods-1)/window*window + window
		var t times
		for len(points) > 0 && points[0].pods <= end {
			t, points = append(t, points[0].took), points[1:]
		}
		result = append(result, point{end - window/2, t.median()})
	}
	return result
}

// growth is the last window's median, as a multiple of the first one's.
func growth(points []point) float64 {
	c := curve(points)
	return float64(c[len(c)-1].took) / float64(c[0].took)
}

// fewPods is what podman takes when a few pods run.
type fewPods struct {
	pods              int
	start, list, exec []point
	beside            process
}

// podmanPods starts pods with podman, one after the other, as [densely] does.
func podmanPods(ctx context.Context, pods int) (*fewPods, error) {
	f := &fewPods{pods: pods}
	var files []string
	for n := 1; n <= pods; n++ {
		file := filepath.Join(work, "podman-"+podName(n)+".yaml")
		if err := os.WriteFile(file, []byte(sleeping.manifest(podName(n), 1)), 0o600); err != nil {
			return nil, err
		}
		files = append(files, file)
		if err := at(ctx, n, &f.start, run("podman", "kube", "play", file)); err != nil {
			return nil, err
		}
		if err := at(ctx, n, &f.list, run("podman", "ps")); err != nil {
			return nil, err
		}
		if err := at(ctx, n, &f.exec, run("podman", "exec", podName(n)+"-main", "true")); err != nil {
			return nil, err
		}
	}
	list, err := processes()
	if err != nil {
		return nil, err
	}
	f.beside = sum(list, ofPodman)
	for _, file := range files {
		if err := command(ctx, "podman", "kube", "down", file); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// table is the page's table of curves, with memory.
func (d *dense) table(few *fewPods) string {
	var b strings.Builder
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format, args...) }
	first := func(points []point) string { return ms(curve(points)[0].took) }
	last := func(points []point) string { c := curve(points); return ms(c[len(c)-1].took) }
	middle := func(points []point) string { c := curve(points); return ms(c[len(c)/2].took) }
	p("| medians of %d pods, in ms | the first | at %d | at %d | last / first | podman with 1 to %d |\n|---|---|---|---|---|---|\n", window, d.pods/2, d.pods, few.pods)
	for _, row := range []struct {
		what           string
		points, podman []point
	}{{"`magikpodctl run`", d.start, few.start}, {"`magikpodctl list`", d.list, few.list}, {"`magikpodctl exec`", d.exec, few.exec}, {"floor: a transient service that runs crun", d.floor, nil}, {"floor: `crun exec`", d.bareExec, nil}} {
		theirs := ""
		if row.podman != nil {
			theirs = ms(curve(row.podman)[0].took)
		}
		p("| %s | %s | %s | %s | %.2f | %s |\n", row.what, first(row.points), middle(row.points), last(row.points), growth(row.points), theirs)
	}
	p("\n`magikpodctl run` after all pods were deleted: %s ms. From `systemctl restart magikpodd` to the end of the first\n`magikpodctl list`: %s ms. `magikpodctl delete --all`: %s ms a pod.\n\n", first(d.again), ms(d.restart.median()), ms(d.down))
	p("| memory (Pss) | MB before the first pod | MB with %d | KB a pod |\n|---|---|---|---|\n", d.pods)
	p("| what each pod has beside its container | | %.1f | %.0f |\n", megabytes(d.beside.pss), perPod(d.beside, d.pods))
	p("| magikpodd | %.1f | %.1f | %.0f |\n", megabytes(d.daemonAlone.pss), megabytes(d.daemon.pss), perPod(d.daemon, d.pods))
	p("| systemd (PID 1) | %.1f | %.1f | %.0f |\n", megabytes(d.initAlone.pss), megabytes(d.init.pss), perPod(d.init, d.pods))
	p("| podman with %d pods: conmon and catatonit | | %.1f | %.0f |\n", few.pods, megabytes(few.beside.pss), perPod(few.beside, few.pods))
	return b.String()
}

// megabytes are 10^6 bytes.
func megabytes(kib int) float64 { return float64(kib) * 1024 / 1e6 }

// perPod is a process's share for each pod, in 10^3 bytes.
func perPod(p process, pods int) float64 { return 1000 * megabytes(p.pss) / float64(pods) }

// beyond is the memory of a pod beyond its own processes, the daemon's share included, in MB.
func (d *dense) beyond() float64 { return (perPod(d.beside, d.pods) + perPod(d.daemon, d.pods)) / 1000 }

// draw writes the curves.
func (d *dense) draw() error {
	for name, c := range map[string]chart{
		"start": {"Start of a pod, until its container runs, when so many run (ms)", []series{{"magikpodctl run", curve(d.start)}, {"floor: a transient service that runs crun", curve(d.floor)}}},
		"list":  {"List of all pods (ms)", []series{{"magikpodctl list", curve(d.list)}}},
		"exec":  {"true, executed in a container of the newest pod (ms)", []series{{"magikpodctl exec", curve(d.exec)}, {"floor: crun exec", curve(d.bareExec)}}},
	} {
		if err := os.WriteFile("../../docs/performance-"+name+".svg", []byte(c.svg()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
