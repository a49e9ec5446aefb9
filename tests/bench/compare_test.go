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
	measured := []results{{}, {}}
	for n := -1; n < *pairs; n++ { // the first one warms up
		for i := range servers {
			which := (i + max(n, 0)) % len(servers)
			if got := servers[which].round(t); n >= 0 {
				measured[which].join(got)
			}
		}
	}
	text, worst := compared(measured[0], measured[1])
	t.Log("\n" + text)
	for _, what := range worst {
		t.Errorf("%s: it was quicker before by more than 5 %%", what)
	}
}

// compared makes a table of ratios, and lists what is worse.
func compared(before, now results) (table string, worst []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "Medians of %d alternating rounds in ms, with the lower and upper decile\n\n| | before | now | now / before, median |\n|---|---|---|---|\n", *pairs)
	for _, name := range []string{"magikpodctl", "magikpod over D-Bus", "pod-wasm", "pod-microvm-containers", "floor"} {
		for _, thing := range []string{"start", "exec", "list", "down"} {
			was, is := before[name][thing], now[name][thing]
			if len(was) == 0 || len(is) == 0 {
				continue
			}
			ratio := medianRatio(was, is)
			fmt.Fprintf(&b, "| %s: %s | %v | %v | %.2f |\n", name, thing, was, is, ratio)
			if ratio > worse && name != "floor" {
				worst = append(worst, name+": "+thing)
			}
		}
	}
	return b.String(), worst
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
func (s *server) round(t *testing.T) results {
	t.Helper()
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		t.Fatalf("cannot ask for a round: %v", err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the host has not measured a round: %v", err)
	}
	var r results
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
		r := results{}
		for _, c := range contenders {
			if err := c.round(ctx, r); err != nil {
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
	program, err := newProgram("magikpod over D-Bus", one)
	if err != nil {
		return nil, err
	}
	ground, err := newFloor(ctx)
	if err != nil {
		return nil, err
	}
	if err := loadModule(ctx); err != nil {
		return nil, err
	}
	contenders := []contender{
		ctl("magikpodctl", one), program.contender(), ground.contender(),
		ctl("pod-wasm", wasmPod).without("exec", "list"), // modules have no exec, and the list is the same
	}
	if *vms {
		contenders = append(contenders, ctl("pod-microvm-containers", vmPod).without("list"))
	}
	return contenders, nil
}
