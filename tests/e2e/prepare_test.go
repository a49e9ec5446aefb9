package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/testimage"
	"github.com/magikrun/magikpod/tests/testwasm"
)

const (
	configFile = "/etc/magikpod/magikpod.yaml"
	// images holds image archives for the scripts, as $IMAGES.
	images = "/run/e2e"
	// busybox is the image that all scripts can use.
	busybox = "localhost/busybox:1"
	// wasmbox is the same for the class pod-wasm: its commands are WebAssembly modules.
	wasmbox = "localhost/wasmbox:1"
)

// baseConfig is the daemon's configuration where a script gives no other: backoff that a test can
// wait for, and a daemon that stays.
var baseConfig = `backoffInitial: 500ms
backoffMax: 4s
backoffReset: 10m
idleTimeout: 1h
microvm: {accel: ` + host.Accel() + `, memory: 96Mi, scratch: 1Gi}
`

// registryAddress is the address of the tests' own registry, as $REGISTRY.
var registryAddress string

// prepare gives the host a configuration and an image.
func prepare(ctx context.Context) error {
	host.LoadVMModules()
	if err := os.WriteFile(configFile, []byte(baseConfig), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	archive := filepath.Join(images, "busybox.tar")
	if err := writeFile(archive, func(f *os.File) error { return testimage.Busybox(f) }); err != nil {
		return err
	}
	if err := writeArchives(archive); err != nil {
		return err
	}
	var err error
	if registryAddress, err = serveRegistry(archive); err != nil {
		return err
	}
	if err := exec.CommandContext(ctx, "cp", "/proc/"+strconv.Itoa(os.Getpid())+"/exe", filepath.Join(images, "helper")).Run(); err != nil {
		return fmt.Errorf("cannot copy the helper: %w", err)
	}
	manifest := filepath.Join(images, "first.yaml")
	if err := os.WriteFile(manifest, []byte(firstPod), 0o600); err != nil {
		return err
	}
	// The first pod makes directories that stay, so it must come before the first look for leftovers.
	for _, args := range [][]string{
		{"image", "load", "--tag", busybox, archive}, {"run", "-f", manifest, "--wait", "completed"}, {"delete", "-f", manifest},
	} {
		if out, err := exec.CommandContext(ctx, "magikpodctl", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("magikpodctl %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return prepareModules(ctx)
}

// writeModules writes the image of the class pod-wasm, from the guests that make guests has built,
// and copies them to $IMAGES.
func writeModules(f *os.File) error {
	guests := map[string][]byte{}
	for _, name := range []string{"busybox", "guest", "preview1", "small"} {
		module, err := os.ReadFile(filepath.Join("..", "..", ".cache", "guests", name+".wasm"))
		if err != nil {
			return fmt.Errorf("%w (try: make guests)", err)
		}
		guests[name] = module
		if err := os.WriteFile(filepath.Join(images, name+".wasm"), module, 0o644); err != nil {
			return err
		}
	}
	hostile := map[string][]byte{
		"blocks1": testwasm.Extra(testwasm.Blocks(200_000), "1"), "blocks2": testwasm.Extra(testwasm.Blocks(200_000), "2"),
		"library": testwasm.Function("other"), "imports": testwasm.Import("env", "abort"),
	}
	for name, module := range hostile {
		if err := os.WriteFile(filepath.Join(images, name+".wasm"), module, 0o644); err != nil {
			return err
		}
	}
	more := map[string][]byte{"guest.wasm": guests["guest"], "preview1.wasm": guests["preview1"]}
	return testwasm.Image(f, guests["busybox"], more)
}

// prepareModules gives the host what the class pod-wasm needs.
func prepareModules(ctx context.Context) error {
	modules := filepath.Join(images, "wasmbox.tar")
	if err := writeFile(modules, writeModules); err != nil {
		return err
	}
	guest, err := os.ReadFile(filepath.Join(images, "guest.wasm"))
	if err != nil {
		return err
	}
	if err := pushModules(guest); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "magikpodctl", "image", "load", "--tag", wasmbox, modules).CombinedOutput(); err != nil {
		return fmt.Errorf("magikpodctl image load: %w: %s", err, out)
	}
	return nil
}

// compileModules runs the modules of wasmbox that scripts run, once: in an emulated VM compiling
// them takes minutes, which no script waits for.
var compileModules = sync.OnceValue(func() error {
	if os.Getenv("MAGIKPOD_VM") == "" {
		return nil
	}
	for name, command := range map[string]string{"busybox": "echo", "guest": "/guest.wasm", "preview1": "/preview1.wasm"} {
		file := filepath.Join(images, "compile-"+name+".yaml")
		manifest := fmt.Sprintf(compilePod, name, command)
		if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
			return err
		}
		for _, args := range [][]string{{"run", "-f", file, "--wait", "started", "--timeout", "15m"}, {"delete", "--force", "-f", file}} {
			if out, err := exec.Command("magikpodctl", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("magikpodctl %s: %w: %s", strings.Join(args, " "), err, out)
			}
		}
	}
	return nil
})

const compilePod = `
{apiVersion: v1, kind: Pod, metadata: {name: compile-%s}, spec: {runtimeClassName: pod-wasm, restartPolicy: Never, containers: [{name: main, image: "localhost/wasmbox:1", command: [%s]}]}}
`

const firstPod = `apiVersion: v1
kind: ConfigMap
metadata: {name: first}
data: {a: b}
---
apiVersion: v1
kind: Secret
metadata: {name: first}
stringData: {a: b}
---
{apiVersion: v1, kind: Pod, metadata: {name: first}, spec: {restartPolicy: Never, containers: [{name: main, image: "localhost/busybox:1", command: ["true"]}]}}
`

func writeFile(path string, write func(*os.File) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
