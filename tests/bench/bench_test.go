package bench

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/testimage"
)

const (
	envBench = "MAGIKPOD_BENCH"
	work     = "/run/bench"
	image    = "localhost/busybox:1"
)

var (
	write   = flag.Bool("write", false, "write what was measured into docs/ and "+recordedFile)
	pairs   = flag.Int("pairs", 20, "how often each is measured: the number of rounds")
	density = flag.Int("density", bridgePorts, "how many pods the curves end at")
)

// bridgePorts is how many pods can have a network at once: a bridge of Linux has no more ports
// (BR_PORT_BITS, of which port 0 is none).
const bridgePorts = 1023

func TestMain(m *testing.M) {
	if os.Getenv(envServe) != "" {
		flag.Parse()
		if err := serveRounds(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	host.Inside(m, envBench, prepare)
}

// prepare gives the host the image, for magikpod and as a bundle.
func prepare(ctx context.Context) error {
	host.LoadVMModules()
	// The first pod has the daemon read it.
	if err := os.WriteFile("/etc/magikpod/magikpod.yaml", []byte("microvm: {accel: "+host.Accel()+", memory: 96Mi, scratch: 1Gi}\n"), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(work, "bundle", "rootfs"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(archive)
	if err != nil {
		return err
	}
	if err := errors.Join(testimage.Busybox(f), f.Close(), writeManifests()); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"magikpodctl", "image", "load", "--tag", image, archive},
		{"tar", "--extract", "--directory", filepath.Join(work, "bundle", "rootfs"), "--file", archive},
		{"crun", "spec", "--bundle", filepath.Join(work, "bundle")},
	} {
		if err := command(ctx, argv...); err != nil {
			return err
		}
	}
	return bundle(filepath.Join(work, "bundle", "config.json"))
}

var archive = filepath.Join(work, "busybox.tar")

// TestBench measures everything that docs/performance.md has targets for, in one run on one host. It
// fails when something does not work; how quick things are is for people to judge.
func TestBench(t *testing.T) {
	host.IsInside(t, envBench, "make bench")
	ctx := t.Context()
	if err := command(ctx, "podman", "import", "--quiet", archive, image); err != nil {
		t.Fatal(err)
	}
	program, err := newProgram("magikpod over D-Bus", one)
	if err != nil {
		t.Fatal(err)
	}
	defer program.close()
	ground, err := newFloor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer ground.close()
	measured := results{}
	for _, part := range []struct {
		rounds     int
		contenders []contender
	}{
		{*pairs, []contender{ctl("magikpodctl", one), podman(one), program.contender(), ground.contender()}},
		{max(1, *pairs/3), []contender{
			ofMany(1, "of 16 containers", "magikpodctl", []string{"run", "-f", sixteen}, []string{"delete", "-f", sixteen}),
			ofMany(1, "of 16 containers", "podman", []string{"kube", "play", sixteen}, []string{"kube", "down", sixteen}),
		}},
		{max(1, *pairs/10), []contender{
			ofMany(50, "of 50 pods", "magikpodctl", []string{"run", "-f", fifty}, []string{"delete", "-f", fifty}),
			ofMany(50, "of 50 pods", "podman", []string{"kube", "play", fifty}, []string{"kube", "down", fifty}),
		}},
	} {
		if err := alternate(ctx, part.rounds, part.contenders, measured); err != nil {
			t.Fatal(err)
		}
	}
	if err := writePage(t, "performance.md", map[string]string{"measured": measuredTable(measured), "host": measuredOn()}); err != nil {
		t.Fatal(err)
	}
	few, err := podmanPods(ctx, 8)
	if err != nil {
		t.Fatal(err)
	}
	many, err := densely(ctx, ground, program)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePage(t, "performance.md", map[string]string{"targets": targetsTable(targets(measured, many, few)), "density": many.table(few)}); err != nil {
		t.Fatal(err)
	}
	if *write {
		if err := many.draw(); err != nil {
			t.Fatal(err)
		}
	}
}

// command runs a command that must succeed.
func command(ctx context.Context, argv ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%v: %w: %s", argv, err, out.Bytes())
	}
	return nil
}

// contender is one of those that are compared: what it does in a round.
type contender struct {
	name  string
	steps []step
}

// step is one thing that is measured; without a name it is only done.
type step struct {
	thing string
	do    func(context.Context) error
	count int // what it takes is divided by this; 0: 1
}

func run(argv ...string) func(context.Context) error {
	return func(ctx context.Context) error { return command(ctx, argv...) }
}

// repeated is for what takes so little that the time of one is chance: see step.count.
func repeated(do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for range repetitions {
			if err := do(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

const repetitions = 10

// ctl is magikpodctl with a manifest.
func ctl(name, file string) contender {
	return contender{name, []step{
		{"start", run("magikpodctl", "run", "-f", file), 1}, {"exec", run("magikpodctl", "exec", "bench", "--", "true"), 1},
		{"list", run("magikpodctl", "list"), 1}, {"down", run("magikpodctl", "delete", "bench"), 1},
	}}
}

func podman(file string) contender {
	return contender{"podman", []step{
		{"start", run("podman", "kube", "play", file), 1}, {"exec", run("podman", "exec", "bench-main", "true"), 1},
		{"list", run("podman", "ps"), 1}, {"down", run("podman", "kube", "down", file), 1},
	}}
}

// ofMany starts and stops a manifest of several pods or containers.
func ofMany(count int, what, program string, start, down []string) contender {
	return contender{program, []step{
		{"start " + what, run(append([]string{program}, start...)...), count}, {"down " + what, run(append([]string{program}, down...)...), count},
	}}
}

// without drops steps of a contender that has no such thing.
func (c contender) without(things ...string) contender {
	kept := contender{name: c.name}
	for _, s := range c.steps {
		if !slices.Contains(things, s.thing) {
			kept.steps = append(kept.steps, s)
		}
	}
	return kept
}

// pause lies before each measurement.
const pause = 100 * time.Millisecond

// slow is reported when it happens: medians hide it.
const slow = 2 * time.Second

// round does and measures all of the contender's steps once.
func (c contender) round(ctx context.Context, into results) error {
	for _, s := range c.steps {
		if s.thing == "" {
			if err := s.do(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			continue
		}
		// A container that has just been started needs a moment to handle SIGTERM, and what goes on
		// in the background is nobody else's burden.
		time.Sleep(pause)
		took, err := timed(ctx, s.do)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", c.name, s.thing, err)
		}
		took /= time.Duration(max(1, s.count))
		if took > slow {
			fmt.Fprintf(os.Stderr, "%s: %s took %v\n", c.name, s.thing, took)
		}
		into.add(c.name, s.thing, took)
	}
	return nil
}

func timed(ctx context.Context, do func(context.Context) error) (time.Duration, error) {
	began := time.Now()
	err := do(ctx)
	return time.Since(began), err
}

// alternate measures the contenders in turn. One round more warms up, unless there are few.
func alternate(ctx context.Context, rounds int, contenders []contender, into results) error {
	first := 0
	if rounds > 3 {
		first = -1
	}
	for round := first; round < rounds; round++ {
		to := into
		if round < 0 {
			to = results{}
		}
		for i := range contenders {
			// Each comes first as often as the others.
			if err := contenders[(i+max(round, 0))%len(contenders)].round(ctx, to); err != nil {
				return err
			}
		}
	}
	return nil
}
