package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

const (
	// recordedFile has what make bench WRITE=1 has measured of each of [checks].
	recordedFile = "ratios.json"
	// tolerated is how much larger a ratio may be than the recorded one; toleratedBusy, on a busy
	// computer: a pod starts on several CPUs at once and the floor on one, so that one busy process on
	// two CPUs makes a third more of some ratios, and five of them twice as much.
	tolerated, toleratedBusy = 1.25, 3.0
	// checkRounds take about 10 seconds. Those in which others use the CPUs are taken anew, a few times.
	checkRounds, moreRounds = 7, 3
	// busy is the part of the CPUs that others may use in a round.
	busy = 0.25
)

// checks are what must not become slower: each as a ratio to what the floor takes in the same round.
var checks = []struct{ name, contender, thing, floor string }{
	{"start over D-Bus / floor", "magikpod over D-Bus", "start", "start"},
	{"exec over D-Bus / crun exec", "magikpod over D-Bus", "exec", "exec"},
	{"list over D-Bus / systemd's list of units", "magikpod over D-Bus", "list", "list"},
	{"delete over D-Bus / floor", "magikpod over D-Bus", "down", "down"},
	{"start of pod-wasm over D-Bus / floor", "pod-wasm", "start", "start"},
}

// ratios are those of the checks, by name.
type ratios map[string]float64

// TestRegression fails when something takes more than a quarter longer than was recorded, as a
// multiple of the floor. The rounds alternate, and what counts is the median of each round's ratio.
// What fails has a second chance.
func TestRegression(t *testing.T) {
	host.IsInside(t, envBench, "make bench-check")
	text, err := os.ReadFile(recordedFile)
	if err != nil {
		t.Fatal(err)
	}
	var recorded ratios
	if err := json.Unmarshal(text, &recorded); err != nil {
		t.Fatalf("%s: %v", recordedFile, err)
	}
	rounds := checkRounds
	if *write {
		rounds *= 3
	}
	measured, limit, err := ratiosToFloor(t, rounds)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(measured.table(recorded))
	if *write {
		if limit != tolerated {
			t.Fatal("the computer is too busy to record how quick things are")
		}
		if text, err = json.MarshalIndent(measured, "", "\t"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(recordedFile, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if failed := measured.beyond(recorded, limit); len(failed) > 0 {
		t.Logf("once more, for %q", failed)
		again, limit, err := ratiosToFloor(t, rounds)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(again.table(recorded))
		for _, name := range again.beyond(recorded, limit) {
			if slices.Contains(failed, name) {
				t.Errorf("%s: %.2f, then %.2f; recorded is %.2f", name, measured[name], again[name], recorded[name])
			}
		}
	}
}

// ratiosToFloor measures the checks, and says how much larger than recorded they may be.
func ratiosToFloor(t *testing.T, rounds int) (ratios, float64, error) {
	ctx := t.Context()
	if err := loadModule(ctx); err != nil {
		return nil, 0, err
	}
	native, err := newProgram("magikpod over D-Bus", one)
	if err != nil {
		return nil, 0, err
	}
	defer native.close()
	modules, err := newProgram("pod-wasm", wasmPod)
	if err != nil {
		return nil, 0, err
	}
	defer modules.close()
	ground, err := newFloor(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer ground.close()
	contenders := []contender{native.contender(), ground.contender(), modules.contender().without("exec", "list")}
	if err := alternate(ctx, 1, contenders, results{}); err != nil { // warms up
		return nil, 0, err
	}
	quiet, all := 0, results{}
	kept := results{}
	for n := 0; n < rounds+moreRounds && quiet < rounds; n++ {
		r := results{}
		before := othersUse()
		if err := alternate(ctx, 1, contenders, r); err != nil {
			return nil, 0, err
		}
		all.join(r)
		if max(before, othersUse()) <= busy {
			quiet++
			kept.join(r)
		}
	}
	limit := tolerated
	if quiet < rounds/2 {
		t.Logf("the computer is busy: only %d rounds were quiet, so ratios may be %g times what was recorded", quiet, toleratedBusy)
		limit, kept = toleratedBusy, all
	}
	measured := ratios{}
	for _, c := range checks {
		measured[c.name] = medianRatio(kept["floor"][c.floor], kept[c.contender][c.thing])
	}
	return measured, limit, nil
}

// othersUse is the part of the CPUs' time that is used while nothing is measured.
func othersUse() float64 {
	used, all := cpuTime()
	time.Sleep(2 * pause)
	usedNow, allNow := cpuTime()
	return (usedNow - used) / max(allNow-all, 1)
}

// cpuTime is what the CPUs have worked, and their time in all (proc_stat(5)).
func cpuTime() (used, all float64) {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:9] { // up to steal
		n, _ := strconv.ParseFloat(field, 64)
		all += n
		if i != 3 && i != 4 { // idle, iowait
			used += n
		}
	}
	return used, all
}

// beyond are the checks that are larger than what was recorded, or were never recorded.
func (r ratios) beyond(recorded ratios, limit float64) (names []string) {
	for _, c := range checks {
		if r[c.name] > limit*recorded[c.name] {
			names = append(names, c.name)
		}
	}
	return names
}

func (r ratios) table(recorded ratios) string {
	text := ""
	for _, c := range checks {
		text += fmt.Sprintf("\n%-45s %.2f, recorded %.2f", c.name, r[c.name], recorded[c.name])
	}
	return text
}

// loadModule loads the image of pods of the class pod-wasm.
func loadModule(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(guests, "guest.wasm")); err != nil {
		return fmt.Errorf("%w (try: make guests)", err)
	}
	return command(ctx, "magikpodctl", "image", "load", "--tag", module.image, filepath.Join(guests, "guest.wasm"))
}
