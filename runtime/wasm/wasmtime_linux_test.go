package wasm_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/wasm"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// standIn is this test binary in place of wasmtime, which is in no Debian release: it runs no
// WebAssembly. It prints how it was called and what its jail lets it do, and then does what the
// guest's arguments say: what it shows is the way there, exit codes and signals, not wasmtime.
func standIn(args []string) int {
	guest := args[slices.Index(args, "--")+1:]
	fmt.Println("argv|" + strings.Join(args, "|"))
	fmt.Println("env|" + strings.Join(os.Environ(), "|"))
	module, err := os.ReadFile(guest[0])
	fmt.Printf("module|%q|%v\n", module, err)
	var have [2]unix.CapUserData
	err = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0])
	refused, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	fmt.Printf("privileges|%d|%d|%v|%v|%d\n", os.Getuid(), os.Getgid(), have, err, refused)
	entries, err := os.ReadDir("/")
	fmt.Println("root", entries, err)
	for _, file := range []string{"/new", "/module.wasm", "/proc/self", "/etc/machine-id", "/guest/../etc/machine-id"} {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600)
		if err == nil {
			f.Close()
			fmt.Println("ESCAPED", file)
		}
		if data, err := os.ReadFile(file); err == nil && file != "/module.wasm" {
			fmt.Println("ESCAPED", file, len(data))
		}
	}
	fmt.Println("umount", unix.Unmount("/guest", unix.MNT_DETACH))
	for _, arg := range guest[1:] {
		word, value, _ := strings.Cut(arg, "=")
		number, _ := strconv.Atoi(value)
		switch word {
		case "write":
			fmt.Println("wrote", os.WriteFile("/guest"+value, []byte("x"), 0o600))
		case "exit":
			return number
		case "sleep":
			time.Sleep(time.Hour)
		}
	}
	return 0
}

// wasmtimeWorld is a world in which a program runs components.
func wasmtimeWorld(t *testing.T, program string) *world {
	w := newWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if program == "" {
		program = self
	}
	w.config.Runtime = wasm.New(wasm.Config{Program: self, ShimPath: self, Cache: cacheDir, Wasmtime: program})
	w.restart()
	return w
}

func component(change func(*corev1.Container)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Command = []string{"/component.wasm"}
		if change != nil {
			change(c)
		}
	}
}

// TestComponentJail: what runs components is jailed like a module, gets what a guest must have, and
// its exit code is the container's.
func TestComponentJail(t *testing.T) {
	w := wasmtimeWorld(t, "")
	volume := t.TempDir()
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	user := int64(1234)
	state, log := w.result(component(func(c *corev1.Container) {
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: &user, RunAsGroup: &user}
		c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")}
		c.Env = []corev1.EnvVar{{Name: "X", Value: "x"}}
	}), "write=/data/f write=/ro/f exit=42", runtime.Mount{Source: volume, Destination: "/data"}, runtime.Mount{Source: volume, Destination: "/ro", ReadOnly: true})
	if state.ExitCode != 42 {
		t.Errorf("the container ended as %+v, want exit code 42", state)
	}
	for _, want := range []string{
		"argv|run|-C|cache=n|-W|max-memory-size=268435456|--dir|/guest::/|", "|--env|ATTEMPT|", "|--argv0|/component.wasm|--|/module.wasm|write=/data/f|", "|ATTEMPT=0|",
		`module|"\x00asm\r\x00\x01\x00"|<nil>`, "privileges|1234|1234|[{0 0 0} {0 0 0}]|<nil>|1\n", "umount operation not permitted\n", "wrote <nil>\n", "read-only file system",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, "ESCAPED") {
		t.Errorf("log:\n%s", log)
	}
	if data, err := os.ReadFile(filepath.Join(volume, "f")); string(data) != "x" {
		t.Errorf("the volume: %q, %v", data, err)
	}
}

// TestComponentStop: the stop signal ends what runs a component at once.
func TestComponentStop(t *testing.T) {
	w := wasmtimeWorld(t, "")
	p := w.pod("sleep")
	component(nil)(p)
	w.create(p, nil)
	if err := w.attempt(p, 0, 0); err != nil {
		t.Fatal(err)
	}
	w.await(p, "a", pod.ContainerRunning)
	began := time.Now()
	if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), "a", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if state := w.await(p, "a", pod.ContainerExited); state.ExitCode != 143 || time.Since(began) > 15*time.Second {
		t.Errorf("%+v after %v", state, time.Since(began))
	}
}

// TestComponentDynamic: a program with a loader and libraries, as wasmtime's releases are, starts
// in the jail. It is no wasmtime but echo.
func TestComponentDynamic(t *testing.T) {
	w := wasmtimeWorld(t, "echo")
	state, log := w.result(component(func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 18125}} }), "hello")
	if state.ExitCode != 0 || !strings.Contains(log, "run -C cache=n -S inherit-network=y --dir /guest::/ ") || !strings.HasSuffix(log, "-- /module.wasm hello\n") {
		t.Errorf("%+v, log %q", state, log)
	}
}

func TestComponentRefused(t *testing.T) {
	for program, text := range map[string]string{"/no/such/wasmtime": "no such file", "echo": "no other function"} {
		t.Run(filepath.Base(program), func(t *testing.T) {
			w := wasmtimeWorld(t, program)
			p := w.pod("")
			component(func(c *corev1.Container) {
				if program == "echo" {
					c.Command[0] += "#f"
				}
			})(p)
			w.create(p, nil)
			err := w.attempt(p, 0, 0)
			if err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "component") {
				t.Error(err)
			}
		})
	}
}

// TestWasmtimeComponent runs where wasmtime is installed.
func TestWasmtimeComponent(t *testing.T) {
	if _, err := exec.LookPath("wasmtime"); err != nil {
		t.Skip("wasmtime is not installed (try: https://wasmtime.dev)")
	}
	w := wasmtimeWorld(t, "wasmtime")
	for code, module := range map[int][]byte{0: testwasm.Command(true), 1: testwasm.Command(false)} {
		if err := os.WriteFile(filepath.Join(w.state, "layers", "wasm", "component.wasm"), module, 0o600); err != nil {
			t.Fatal(err)
		}
		if state, log := w.result(component(nil), ""); state.ExitCode != code {
			t.Errorf("%+v, log %q", state, log)
		}
	}
}
