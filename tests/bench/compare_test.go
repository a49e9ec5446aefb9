package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

const (
	// envBefore names the installed tree that the one of $MAGIKHOST_INSTALL is compared with.
	envBefore = "MAGIKPOD_BENCH_BEFORE"
	// envServe makes the test binary, on a host, measure a round for each line of its standard input.
	envServe = "MAGIKPOD_BENCH_SERVE"
)

var vms = flag.Bool("vms", false, "compare pods in VMs, too: half a minute a round where they are emulated")

// worse is how much longer something may take than before.
const worse = 1.05

// round is what one round has taken, by contender and thing.
type round map[string]map[string]times

// TestCompare measures two installed trees, each on a host of its own, in alternating rounds, and
// fails when something takes more than 5 % longer than before. What counts is the median of the
// rounds' ratios, since how busy the computer is changes from round to round. The floor is the same
// on both: how far its ratio is from 1 says what the others are worth.
func TestCompare(t *testing.T) {
	before, now := os.Getenv(envBefore), os.Getenv(host.EnvInstall)
	if before == "" {
		t.Skip("there is nothing to compare with (try: make bench-compare BEFORE=main)")
	}
	servers := []*server{serve(t, before), serve(t, now)}
	results := []round{{}, {}}
	for n := -1; n < *pairs; n++ { // the first one warms up
		for i := range servers {
			which := (i + max(n, 0)) % len(servers)
			got := servers[which].round(t)
			if n < 0 {
				continue
			}
			for name, things := range got {
				if results[which][name] == nil {
					results[which][name] = map[string]times{}
				}
				for thing, took := range things {
					results[which][name][thing] = append(results[which][name][thing], took...)
				}
			}
		}
	}
	text, slower := compared(results[0], results[1])
	t.Log("\n" + text)
	for _, what := range slower {
		t.Errorf("%s: it was quicker before by more than 5 %%", what)
	}
}

// compared makes a table of ratios, and lists what is worse.
func compared(before, now round) (table string, slower []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "Medians of %d alternating rounds in ms, with the lower and upper decile\n\n| | before | now | now / before, median |\n|---|---|---|---|\n", *pairs)
	cell := func(t times) string {
		return fmt.Sprintf("%s (%s-%s)", ms(t.median()), ms(t.quantile(0.1)), ms(t.quantile(0.9)))
	}
	for _, name := range []string{"magikpodctl", "magikpod over D-Bus", "pod-wasm", "pod-microvm-containers", "floor"} {
		for _, thing := range things {
			was, is := before[name][thing], now[name][thing]
			if len(was) == 0 || len(is) == 0 {
				continue
			}
			ratio := medianRatio(was, is)
			fmt.Fprintf(&b, "| %s: %s | %s | %s | %.2f |\n", name, thing, cell(was), cell(is), ratio)
			if ratio > worse && name != "floor" {
				slower = append(slower, name+": "+thing)
			}
		}
	}
	return b.String(), slower
}

// medianRatio is the median of how much longer is took than was in the same round.
func medianRatio(was, is times) float64 {
	ratios := make([]float64, len(is))
	for i := range is {
		ratios[i] = float64(is[i]) / float64(was[i])
	}
	slices.Sort(ratios)
	return (ratios[len(ratios)/2] + ratios[(len(ratios)-1)/2]) / 2
}

// server measures on a host.
type server struct {
	in  *os.File
	out *bufio.Reader
}

// serve boots a host with an installed tree and starts the test binary on it.
func serve(t *testing.T, install string) *server {
	t.Helper()
	opts, err := host.OptionsFromEnv()
	if err != nil {
		t.Fatalf("cannot find the root of the hosts: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("cannot find the test binary: %v", err)
	}
	tree, err := host.SourceTree()
	if err != nil {
		t.Fatalf("cannot find the source tree: %v", err)
	}
	opts.Install, opts.Binds = install, []string{tree}
	if !strings.HasPrefix(self, tree+"/") {
		opts.Binds = append(opts.Binds, filepath.Dir(self))
	}
	h, err := host.Boot(t.Context(), opts)
	if err != nil {
		t.Fatalf("cannot boot a host with %s: %v", install, err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("cannot remove the host with %s: %v", install, err)
		}
	})
	inR, inW, err1 := os.Pipe()
	outR, outW, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatalf("cannot make pipes: %v", err)
	}
	p, err := h.Start(t.Context(), host.Command{
		Argv: []string{self, fmt.Sprintf("-vms=%t", *vms)}, Dir: filepath.Join(tree, "tests", "bench"), Env: []string{envServe + "=1", "HOME=/root", "LANG=C.UTF-8"},
		Stdin: inR, Stdout: outW, Stderr: os.Stderr,
	})
	if err != nil {
		t.Fatalf("cannot start the measuring on the host with %s: %v", install, err)
	}
	_, _ = inR.Close(), outW.Close()
	t.Cleanup(func() {
		_, _ = inW.Close(), outR.Close()
		_, _ = p.Wait() // the host goes anyway
	})
	return &server{inW, bufio.NewReader(outR)}
}

// round has the server measure once.
func (s *server) round(t *testing.T) round {
	t.Helper()
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		t.Fatalf("cannot ask for a round: %v", err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the host has not measured a round: %v", err)
	}
	var r round
	if err := json.Unmarshal(line, &r); err != nil {
		t.Fatalf("cannot read the round %q: %v", line, err)
	}
	return r
}

// serveRounds is the test binary on a host of [serve].
func serveRounds() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := prepare(ctx); err != nil {
		return err
	}
	contenders, err := installed(ctx)
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		r := round{}
		for _, c := range contenders {
			r[c.name] = map[string]times{}
			if err := measure(ctx, c, r[c.name], true); err != nil {
				return err
			}
		}
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// installed are the contenders that use what is installed, and the floor.
func installed(ctx context.Context) ([]contender, error) {
	file := filepath.Join(work, "pod.yaml")
	program, err := newProgram(file)
	if err != nil {
		return nil, err
	}
	ground, err := newFloor(ctx)
	if err != nil {
		return nil, err
	}
	contenders := []contender{ctl("magikpodctl", file), program.contender(), ground.contender()}
	module := filepath.Join(work, "module.wasm")
	guest, err := os.ReadFile(filepath.Join(guests, "guest.wasm"))
	if err != nil {
		return nil, fmt.Errorf("%w (try: make guests)", err)
	}
	if err := os.WriteFile(module, guest, 0o600); err != nil {
		return nil, err
	}
	if err := command(ctx, "magikpodctl", "image", "load", "--tag", "localhost/guest:1", module); err != nil {
		return nil, err
	}
	wasm, err := ofClass("wasm.yaml", "pod-wasm", strings.NewReplacer(image, "localhost/guest:1", `command: ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]`, `args: ["sleep", "100000000"]`))
	if err != nil {
		return nil, err
	}
	c := ctl("pod-wasm", wasm)
	c.exec, c.list = nil, nil // modules have no exec, and the list is the same
	contenders = append(contenders, c)
	if *vms {
		vm, err := ofClass("vm.yaml", "pod-microvm-containers", strings.NewReplacer())
		if err != nil {
			return nil, err
		}
		c := ctl("pod-microvm-containers", vm)
		c.list = nil
		contenders = append(contenders, c)
	}
	return contenders, nil
}

// ofClass writes the manifest for another class.
func ofClass(name, class string, change *strings.Replacer) (string, error) {
	path := filepath.Join(work, name)
	return path, os.WriteFile(path, []byte(change.Replace(strings.Replace(manifest, "spec:\n", "spec:\n  runtimeClassName: "+class+"\n", 1))), 0o600)
}

// ctl is magikpodctl with a manifest.
func ctl(name, file string) contender {
	return commands(name, []string{"magikpodctl", "run", "-f", file}, []string{"magikpodctl", "exec", "bench", "--", "true"},
		[]string{"magikpodctl", "list"}, []string{"magikpodctl", "delete", "bench"})
}
