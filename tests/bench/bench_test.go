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
	write = flag.Bool("write", false, "write docs/performance.md")
	pairs = flag.Int("pairs", 20, "how often each is measured: the number of rounds")
)

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

// manifest is the pod that is measured: one container that ends at once when it is asked to.
const manifest = `apiVersion: v1
kind: Pod
metadata:
  name: bench
spec:
  terminationGracePeriodSeconds: 10
  containers:
    - name: main
      image: localhost/busybox:1
      command: ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]
`

// prepare gives the host the image, for magikpod, for podman and as a bundle.
func prepare(ctx context.Context) error {
	host.LoadVMModules()
	// The first pod has the daemon read it.
	if err := os.WriteFile("/etc/magikpod/magikpod.yaml", []byte("microvm: {accel: "+host.Accel()+", memory: 96Mi, scratch: 1Gi}\n"), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(work, "bundle", "rootfs"), 0o755); err != nil {
		return err
	}
	archive, pod := filepath.Join(work, "busybox.tar"), filepath.Join(work, "pod.yaml")
	f, err := os.Create(archive)
	if err != nil {
		return err
	}
	if err := errors.Join(testimage.Busybox(f), f.Close(), os.WriteFile(pod, []byte(manifest), 0o600)); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"magikpodctl", "image", "load", "--tag", image, archive},
		{"podman", "import", "--quiet", archive, image},
		{"tar", "--extract", "--directory", filepath.Join(work, "bundle", "rootfs"), "--file", archive},
		{"crun", "spec", "--bundle", filepath.Join(work, "bundle")},
	} {
		if err := command(ctx, argv...); err != nil {
			return err
		}
	}
	return bundle(filepath.Join(work, "bundle", "config.json"))
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

// contender is one of those that are compared. A nil func: it has no such thing.
type contender struct {
	name                    string
	start, exec, list, down func(context.Context) error
}

func commands(name string, start, exec, list, down []string) contender {
	do := func(argv []string) func(context.Context) error {
		return func(ctx context.Context) error { return command(ctx, argv...) }
	}
	return contender{name, do(start), do(exec), do(list), do(down)}
}

// times are the durations of one thing, one for each round.
type times []time.Duration

func (t times) median() time.Duration {
	sorted := slices.Sorted(slices.Values(t))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[len(sorted)/2] + sorted[(len(sorted)-1)/2]) / 2
}

func (t times) quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(t))
	return sorted[int(q*float64(len(sorted)-1))]
}

// pause lies before each measurement.
const pause = 100 * time.Millisecond

// slow is reported when it happens: medians hide it.
const slow = 2 * time.Second

// things are what is measured, in the order of a round.
var things = []string{"start", "exec", "list", "down"}

// TestAgainstPodman measures, and prints the table. It fails when something does not work; how
// quick things are is for people to judge.
func TestAgainstPodman(t *testing.T) {
	host.IsInside(t, envBench, "make bench")
	ctx := t.Context()
	pod := filepath.Join(work, "pod.yaml")
	program, err := newProgram(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer program.close()
	ground, err := newFloor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer ground.close()
	contenders := []contender{
		ctl("magikpodctl", pod),
		commands("podman", []string{"podman", "kube", "play", pod}, []string{"podman", "exec", "bench-main", "true"},
			[]string{"podman", "ps"}, []string{"podman", "kube", "down", pod}),
		program.contender(),
		ground.contender(),
	}
	results := make(map[string]map[string]times)
	for _, c := range contenders {
		results[c.name] = make(map[string]times)
	}
	for round := -1; round < *pairs; round++ { // the first one warms up
		for i := range contenders {
			// Each comes first as often as the others.
			c := contenders[(i+max(round, 0))%len(contenders)]
			if err := measure(ctx, c, results[c.name], round >= 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	text := report(results)
	t.Log("\n" + text)
	if *write {
		if err := os.WriteFile("../../docs/performance.md", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// measure takes one round of c.
func measure(ctx context.Context, c contender, into map[string]times, keep bool) error {
	for i, do := range []func(context.Context) error{c.start, c.exec, c.list, c.down} {
		if do == nil {
			continue
		}
		// A container that has just been started needs a moment to handle SIGTERM, and what goes on
		// in the background is nobody else's burden.
		time.Sleep(pause)
		began := time.Now()
		if err := do(ctx); err != nil {
			return fmt.Errorf("%s: %s: %w", c.name, things[i], err)
		}
		took := time.Since(began)
		if took > slow {
			fmt.Fprintf(os.Stderr, "%s: %s took %v\n", c.name, things[i], took)
		}
		if keep {
			into[things[i]] = append(into[things[i]], took)
		}
	}
	return nil
}
