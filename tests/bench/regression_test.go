package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

const (
	// recordedFile has what make bench WRITE=1 has measured of each of [checks].
	recordedFile = "ratios.json"
	// tolerated is how much larger a ratio may be than the recorded one.
	tolerated = 1.25
	// checkRounds: about 12 seconds.
	checkRounds = 11
)

// checks are what must not become slower: each as a ratio to what the floor takes in the same round.
var checks = []struct{ name, contender, thing, floor string }{
	{"start over D-Bus / floor", "magikpod over D-Bus", "start", "start"},
	{"exec over D-Bus / crun exec", "magikpod over D-Bus", "exec", "exec"},
	{"list over D-Bus / systemd's list of units", "magikpod over D-Bus", "list", "list"},
	{"delete over D-Bus / floor", "magikpod over D-Bus", "down", "down"},
	{"start of pod-wasm over D-Bus / floor", "pod-wasm", "start", "start"},
}

// TestRegression fails when something takes more than a quarter longer than was recorded, as a
// multiple of the floor. The rounds alternate, and what counts is the median of each round's ratio,
// so that a busy computer slows both. What fails has a second chance.
func TestRegression(t *testing.T) {
	host.IsInside(t, envBench, "make bench-check")
	text, err := os.ReadFile(recordedFile)
	if err != nil {
		t.Fatal(err)
	}
	var recorded map[string]float64
	if err := json.Unmarshal(text, &recorded); err != nil {
		t.Fatalf("%s: %v", recordedFile, err)
	}
	rounds := checkRounds
	if *write {
		rounds *= 3
	}
	measured, err := ratiosToFloor(t.Context(), rounds)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ratioTable(measured, recorded))
	if *write {
		if text, err = json.MarshalIndent(measured, "", "\t"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(recordedFile, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(slower(measured, recorded)) == 0 {
		return
	}
	t.Log("once more")
	second, err := ratiosToFloor(t.Context(), rounds)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ratioTable(second, recorded))
	for name, ratio := range second {
		measured[name] = min(ratio, measured[name])
	}
	for _, name := range slower(measured, recorded) {
		t.Errorf("%s: %.2f, recorded is %.2f", name, measured[name], recorded[name])
	}
}

// ratiosToFloor measures the checks, by name.
func ratiosToFloor(ctx context.Context, rounds int) (map[string]float64, error) {
	if err := loadModule(ctx); err != nil {
		return nil, err
	}
	var contenders []contender
	for name, file := range map[string]string{"magikpod over D-Bus": one, "pod-wasm": wasmPod} {
		p, err := newProgram(name, file)
		if err != nil {
			return nil, err
		}
		defer p.close()
		c := p.contender()
		if name == "pod-wasm" {
			c = c.without("exec", "list")
		}
		contenders = append(contenders, c)
	}
	ground, err := newFloor(ctx)
	if err != nil {
		return nil, err
	}
	defer ground.close()
	r := results{}
	if err := alternate(ctx, rounds, append(contenders, ground.contender()), r); err != nil {
		return nil, err
	}
	ratios := map[string]float64{}
	for _, c := range checks {
		ratios[c.name] = medianRatio(r["floor"][c.floor], r[c.contender][c.thing])
	}
	return ratios, nil
}

// slower are the checks that took longer than is tolerated.
func slower(measured, recorded map[string]float64) (names []string) {
	for _, c := range checks {
		// What was never recorded fails: the comparison is not to be false then.
		if !(measured[c.name] <= tolerated*recorded[c.name]) {
			names = append(names, c.name)
		}
	}
	return names
}

func ratioTable(measured, recorded map[string]float64) string {
	text := ""
	for _, c := range checks {
		text += fmt.Sprintf("\n%-45s %.2f, recorded %.2f", c.name, measured[c.name], recorded[c.name])
	}
	return text
}

// loadModule loads the image of pods of the class pod-wasm.
func loadModule(ctx context.Context) error {
	// A file that ends so is taken for a module, and loading it compiles it.
	if _, err := os.Stat(filepath.Join(guests, "guest.wasm")); err != nil {
		return fmt.Errorf("%w (try: make guests)", err)
	}
	return command(ctx, "magikpodctl", "image", "load", "--tag", module.image, filepath.Join(guests, "guest.wasm"))
}
