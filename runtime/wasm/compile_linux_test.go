package wasm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/wasm"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// crashes is what the compiler of these tests does for a module that has the key in it; see TestMain.
var crashes = map[string]func(){
	"crash:panic": func() { panic("a bug\nof two lines") },
	"crash:fatal": func() {
		fmt.Fprintln(os.Stderr, "runtime: goroutine stack exceeds 1000000000-byte limit\nfatal error: stack overflow\n\ngoroutine 1 [running]:")
		os.Exit(2)
	},
	"crash:kill": func() { p, _ := os.FindProcess(os.Getpid()); _ = p.Kill(); select {} },
	"crash:alloc": func() {
		fmt.Fprintln(os.Stderr, "fatal error: runtime: cannot allocate memory\n\ngoroutine 1:")
		os.Exit(2)
	},
}

// crash does it.
func crash(file string) {
	module, _ := os.ReadFile(file)
	for key, do := range crashes {
		if bytes.Contains(module, []byte(key)) {
			do()
		}
	}
}

// images are images of one module each, which a Runtime compiles.
type images struct {
	t             *testing.T
	layers, cache string
	class         *wasm.Runtime
	log           bytes.Buffer // what the class logs
}

func newImages(t *testing.T) *images {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	i := &images{t: t, layers: t.TempDir(), cache: t.TempDir()}
	i.class = wasm.New(wasm.Config{Program: program, Cache: i.cache, Log: slog.New(slog.NewTextHandler(&i.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	t.Cleanup(func() { // no compiler outlives its test
		if left := i.compilers(); len(left) > 0 {
			t.Errorf("compilers are left: %v", left)
		}
		for n := 0; ; n++ {
			left, _ := filepath.Glob(i.cache + "/*/.new-*")
			if len(left) == 0 {
				break
			}
			if n == 200 {
				t.Fatalf("they have left %v", left)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return i
}

// come prepares an image of the module on another goroutine.
func (i *images) come(ctx context.Context, name string, module []byte) <-chan error {
	i.t.Helper()
	dir := filepath.Join(i.layers, name)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "module.wasm"), module, 0o644)); err != nil {
		i.t.Fatal(err)
	}
	return i.again(ctx, name)
}

func (i *images) again(ctx context.Context, name string) <-chan error {
	image := runtime.Image{
		Reference: name, Config: runtime.ImageConfig{Entrypoint: []string{"/module.wasm"}}, Rootfs: runtime.Rootfs{Dir: i.layers, Layers: []string{name}},
	}
	done := make(chan error, 1)
	go func() { done <- i.class.PrepareImage(ctx, image) }()
	return done
}

// compilers are the processes that compile for this cache, by the names of their images.
func (i *images) compilers() map[string]int {
	found := map[string]int{}
	lists, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		if args := strings.Split(string(data), "\x00"); len(args) > 4 && args[1] == "compile" && args[3] == i.cache {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(list)))
			found[filepath.Base(filepath.Dir(args[4]))] = pid
		}
	}
	return found
}

// await waits until these are compiled, and no others.
func (i *images) await(names ...string) map[string]int {
	i.t.Helper()
	var have map[string]int
	for range 600 {
		have = i.compilers()
		all := len(have) == len(names)
		for _, name := range names {
			all = all && have[name] != 0
		}
		if all {
			return have
		}
		time.Sleep(50 * time.Millisecond)
	}
	i.t.Fatalf("compilers: %v, want %v", have, names)
	return nil
}

// joined waits until so many wait for an image's module.
func (i *images) joined(name string, waiting int) {
	i.t.Helper()
	for n := 0; i.class.Waiting(filepath.Join(i.layers, name, "module.wasm")) != waiting; n++ {
		if n == 600 {
			i.t.Fatalf("not %d wait for %s", waiting, name)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (i *images) result(done <-chan error) error {
	i.t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(2 * time.Minute):
		i.t.Fatal("it does not end")
		return nil
	}
}

// slowModule takes a minute and more to compile, each time another one.
func slowModule(name string) []byte { return testwasm.Extra(testwasm.Blocks(200_000), name) }

// TestCompileEndsUnasked: a compilation goes on while somebody waits for it, and ends with the last
// of them. Who comes after that is not notified of it.
func TestCompileEndsUnasked(t *testing.T) {
	i := newImages(t)
	first, leave := context.WithCancel(t.Context())
	second, leaveToo := context.WithCancel(t.Context())
	a := i.come(first, "slow", slowModule("x"))
	pid := i.await("slow")["slow"]
	b := i.again(second, "slow")
	i.joined("slow", 2)
	leave()
	if err := i.result(a); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("who left: %v", err)
	}
	if now := i.await("slow")["slow"]; now != pid {
		t.Errorf("it began again: process %d, and then %d", pid, now)
	}
	leaveToo()
	if err := i.result(b); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("the last one: %v", err)
	}
	third, end := context.WithCancel(t.Context())
	c := i.again(third, "slow")
	i.joined("slow", 1)
	for n := 0; i.compilers()["slow"] == pid || i.compilers()["slow"] == 0; n++ {
		if n == 600 {
			t.Fatal("it goes on although nobody waited for it")
		}
		time.Sleep(50 * time.Millisecond)
	}
	end()
	if err := i.result(c); !errors.Is(err, context.Canceled) {
		t.Errorf("who came later: %v", err)
	}
	i.await()
}

// TestCompileEndsWithImage: when its image goes the compiler ends, also one that still waits for
// others, and who waits for it gets the reason.
func TestCompileEndsWithImage(t *testing.T) {
	i := newImages(t)
	waits := map[string]<-chan error{}
	for _, name := range []string{"a", "b", "c"} {
		waits[name] = i.come(t.Context(), name, slowModule(name))
		if name != "c" {
			i.await([]string{"a", "b"}[:len(waits)]...)
		}
	}
	other := i.again(t.Context(), "a")
	i.joined("a", 2)
	i.joined("c", 1)
	for name, wait := range waits {
		if err := os.RemoveAll(filepath.Join(i.layers, name)); err != nil {
			t.Fatal(err)
		}
		if err := i.class.ForgetImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := i.result(wait); pod.KindOf(err) != pod.NotFound || !strings.Contains(err.Error(), "image was removed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := i.result(other); pod.KindOf(err) != pod.NotFound {
		t.Errorf("another that waited: %v", err)
	}
	i.await()
}

// TestSlowCompilersDelayNobody: behind slow modules others are compiled, and one that has waited
// for its turn has all of its own time.
func TestSlowCompilersDelayNobody(t *testing.T) {
	i := newImages(t)
	ctx, cancel := context.WithCancel(t.Context())
	var slow []<-chan error
	for n := range 4 {
		slow = append(slow, i.come(ctx, fmt.Sprint("slow", n), slowModule(fmt.Sprint(n))))
	}
	begin := time.Now()
	small := i.come(t.Context(), "small", testwasm.Small(t))
	if err := i.result(small); err != nil || !engine.Cached(i.cache, sha256.Sum256(testwasm.Small(t))) {
		t.Errorf("a small module: %v", err)
	}
	t.Logf("a small module behind four slow ones took %v", time.Since(begin).Round(10*time.Millisecond))
	for range 600 { // two of them are left running, two wait for those
		if len(i.compilers()) == 2 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	begin = time.Now()
	if err := i.result(i.come(t.Context(), "small2", testwasm.Extra(testwasm.Small(t), "2"))); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("a small module waited %v for slow ones", took)
	}
	cancel()
	for _, s := range slow {
		if err := i.result(s); pod.KindOf(err) != pod.Unavailable {
			t.Errorf("a slow one: %v", err)
		}
	}
	i.await()
}

// TestCompileTakesNoSlot: while a container waits for its module others are started.
func TestCompileTakesNoSlot(t *testing.T) {
	i := newImages(t)
	places := make(chan struct{}, 1)
	slot := runtime.NewSlot(places)
	if err := slot.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	slow := i.come(runtime.WithSlot(ctx, slot), "slow", slowModule("slot"))
	i.joined("slow", 1)
	other := runtime.NewSlot(places)
	short, end := context.WithTimeout(t.Context(), 30*time.Second)
	defer end()
	if err := other.Take(short); err != nil {
		t.Errorf("no place for another one: %v", err)
	}
	cancel()
	if err := i.result(slow); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("who waited: %v", err)
	}
	slot.Release() // has none
	other.Release()
	if len(places) != 0 {
		t.Error("a place is lost")
	}
	slot = runtime.NewSlot(places)
	if err := slot.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.result(i.come(runtime.WithSlot(t.Context(), slot), "quick", testwasm.Trap())); err != nil || len(places) != 1 {
		t.Errorf("a quick one: %v, %d places are taken", err, len(places))
	}
	i.await()
}

// TestCompilerCrashes: of a compiler that has crashed one line is reported; the daemon's log has
// more at the level debug.
func TestCompilerCrashes(t *testing.T) {
	i := newImages(t)
	for key, want := range map[string]struct {
		kind pod.Kind
		text string
	}{
		"crash:panic": {pod.Internal, "its compiler has crashed: exit status 2: panic: a bug"},
		"crash:fatal": {pod.Internal, "its compiler has crashed: exit status 2: fatal error: stack overflow"},
		"crash:kill":  {pod.Exhausted, "its compiler was killed, as the kernel does when memory runs out"},
		"crash:alloc": {pod.Exhausted, "compiling it takes too much memory"},
	} {
		i.log.Reset()
		err := i.result(i.come(t.Context(), strings.TrimPrefix(key, "crash:"), testwasm.Extra(testwasm.Trap(), key)))
		full := fmt.Sprintf("cannot compile /module.wasm of image %s: %s", strings.TrimPrefix(key, "crash:"), want.text)
		if pod.KindOf(err) != want.kind || err.Error() != full {
			t.Errorf("%s: %v (%s), want %s", key, err, pod.KindOf(err), full)
		}
		if key != "crash:kill" && !strings.Contains(i.log.String(), "goroutine 1") || !strings.Contains(i.log.String(), "level=DEBUG") {
			t.Errorf("%s: the log says %q", key, i.log.String())
		}
	}
	// What may pass is tried again; what cannot is not.
	for name, again := range map[string]bool{"panic": true, "kill": true, "alloc": false} {
		if err := os.WriteFile(filepath.Join(i.layers, name, "module.wasm"), testwasm.Extra(testwasm.Trap(), name), 0o644); err != nil { // no image does that
			t.Fatal(err)
		}
		if err := i.result(i.again(t.Context(), name)); (err == nil) != again {
			t.Errorf("%s: tried again: %v", name, err)
		}
	}
	// An error that is none of the compiler itself.
	if err := i.result(i.come(t.Context(), "bad", append(testwasm.Trap(), 0xff))); pod.KindOf(err) != pod.Invalid || strings.Contains(err.Error(), "crash") {
		t.Errorf("a bad module: %v", err)
	}
}
