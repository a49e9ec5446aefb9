package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// BenchmarkPod measures the life of a pod with one container, alternating with the floor: one
// transient service that runs crun on the same bundle without pod, volumes or logs. Set
// MAGIKPOD_TEST_AGENT to the real magikshim: the test binary takes longer to start.
//
//	first-ms   from CreateSandbox to the container's first sign of life
//	run-ms     from CreateSandbox to the return of RunContainer
//	delete-ms  DeleteSandbox (SIGKILL at once) and Forget
//	exec-ms    Exec of a program that ends at once
//	floor-...  the same of the transient service, and of `crun exec` called directly
func BenchmarkPod(b *testing.B) {
	onSystemd(b)
	w := newWorld(b, "crun", nil)
	signs := filepath.Join(w.config.StateDir, "signs")
	fifo := filepath.Join(signs, "fifo")
	if err := os.Mkdir(signs, 0o700); err != nil {
		b.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o666); err != nil {
		b.Fatal(err)
	}
	sign, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer sign.Close()
	took := map[string][]time.Duration{}
	timed := func(name string, f func() error) {
		b.Helper()
		begin := time.Now()
		if err := f(); err != nil {
			b.Fatal(name, ": ", err)
		}
		took[name] = append(took[name], time.Since(begin))
	}
	await := func() error {
		_, err := sign.Read(make([]byte, 1))
		return err
	}
	floor := newFloor(b, w, fifo)
	for i := 0; b.Loop(); i++ {
		p := w.pod(fmt.Sprint("bench-", i), "echo -n x > /signs/fifo; exec sleep 1000")
		w.pods = w.pods[:1] // the others are deleted here
		sandbox, config := w.sandboxOf(p), w.configOf(p, "a", 0)
		config.Mounts = []runtime.Mount{{Source: signs, Destination: "/signs"}}
		ctx, ref := context.Background(), pod.RefOf(p)
		timed("first", func() error {
			timed("run", func() error {
				if err := w.CreateSandbox(ctx, sandbox); err != nil {
					return err
				}
				return w.RunContainer(ctx, config)
			})
			return await()
		})
		timed("exec", func() error {
			_, err := w.Exec(ctx, ref, "a", runtime.Process{Args: []string{"true"}})
			return err
		})
		timed("delete", func() error {
			if _, err := w.DeleteSandbox(ctx, ref, 0); err != nil {
				return err
			}
			return w.Forget(ctx, ref)
		})
		floor.prepare(i)
		timed("floor-first", func() error {
			timed("floor-run", floor.start)
			return await()
		})
		timed("floor-exec", floor.exec)
		timed("floor-delete", floor.stop)
	}
	for name, list := range took {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-ms")
	}
}

// floor is the least that could be done.
type floor struct {
	b      *testing.B
	w      *world
	bundle string
	id     string
}

// newFloor makes the bundle: that of a pod's container, without what belongs to the pod.
func newFloor(b *testing.B, w *world, fifo string) *floor {
	p := w.pod("floor", "sleep 1")
	w.up(p)
	var spec specs.Spec
	if err := atomicfile.LoadJSON(filepath.Join(w.runDir(p.UID), containersName, "a", "config.json"), maxRecordBytes, &spec); err != nil {
		b.Fatal(err)
	}
	for i := range spec.Linux.Namespaces {
		spec.Linux.Namespaces[i].Path = ""
	}
	spec.Process.Args[2] = "echo -n x > /signs/fifo; exec sleep 1000"
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/signs", Type: "bind", Source: filepath.Dir(fifo), Options: []string{"rbind", "rw"}})
	spec.Root.Path = filepath.Join(w.config.StateDir, "floor")
	if out, err := exec.Command("cp", "-a", filepath.Join(w.image.Rootfs.Dir, "busybox"), spec.Root.Path).CombinedOutput(); err != nil {
		b.Fatalf("cp: %v: %s", err, out)
	}
	f := &floor{b: b, w: w, bundle: filepath.Join(w.config.StateDir, "bundle")}
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.Mkdir(f.bundle, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(f.bundle, "config.json"), data, 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	return f
}

func (f *floor) prepare(i int) { f.id = fmt.Sprint("floor-", i) }

func (f *floor) unit() string { return "magikpod-" + f.id + ".service" }

func (f *floor) crun(args ...string) []string {
	return append([]string{"/usr/bin/" + f.w.oci, "--root=" + f.w.config.RunDir + "/floor", "--cgroup-manager=disabled"}, args...)
}

func (f *floor) start() error {
	job, err := f.w.units.StartTransient(context.Background(), f.unit(), []sd.Property{
		{Name: "Type", Value: dbus.MakeVariant("exec")},
		sd.PropExecStart(f.crun("run", "--bundle="+f.bundle, f.id), false),
	})
	if err != nil {
		return err
	}
	return job.Wait(context.Background())
}

func (f *floor) exec() error {
	argv := f.crun("exec", f.id, "/bin/true")
	var err error
	for range 100 { // crun may not have written yet that the container runs
		if err = exec.Command(argv[0], argv[1:]...).Run(); err == nil {
			return nil
		}
	}
	return err
}

func (f *floor) stop() error {
	ctx := context.Background()
	if err := f.w.units.Kill(ctx, f.unit(), "all", syscall.SIGKILL); err != nil {
		return err
	}
	job, err := f.w.units.Stop(ctx, f.unit())
	if err == nil {
		err = job.Wait(ctx)
	}
	if err == nil {
		err = f.w.units.Release(ctx, f.unit())
	}
	return err
}
