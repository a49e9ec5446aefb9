package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// kind is what the containers of a pod run.
type kind struct {
	class, image, argv string
	grace              int
}

var (
	// trapping ends at once when it is asked to.
	trapping = kind{image: image, argv: `command: ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]`, grace: 10}
	// sleeping is one process, and is killed at once.
	sleeping = kind{image: image, argv: `command: ["sleep", "100000"]`}
	inVM     = kind{class: "pod-microvm-containers", image: trapping.image, argv: trapping.argv, grace: 10}
	module   = kind{class: "pod-wasm", image: "localhost/guest:1", argv: `args: ["sleep", "100000000"]`, grace: 10}
)

// manifest is a pod with so many containers: main, c2, c3...
func (k kind) manifest(name string, containers int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: %d\n", name, k.grace)
	if k.class != "" {
		fmt.Fprintf(&b, "  runtimeClassName: %s\n", k.class)
	}
	b.WriteString("  containers:\n")
	for i := range containers {
		container := "main"
		if i > 0 {
			container = fmt.Sprintf("c%d", i+1)
		}
		fmt.Fprintf(&b, "    - {name: %s, image: \"%s\", %s}\n", container, k.image, k.argv)
	}
	return b.String()
}

// The files that [writeManifests] writes.
var (
	one     = filepath.Join(work, "one.yaml")
	sixteen = filepath.Join(work, "sixteen.yaml") // containers
	fifty   = filepath.Join(work, "fifty.yaml")   // pods
	wasmPod = filepath.Join(work, "wasm.yaml")
	vmPod   = filepath.Join(work, "vm.yaml")
)

func writeManifests() error {
	var pods strings.Builder
	for i := range 50 {
		pods.WriteString(sleeping.manifest(fmt.Sprintf("bench-%d", i+1), 1))
	}
	for file, text := range map[string]string{
		one: trapping.manifest("bench", 1), sixteen: sleeping.manifest("bench", 16), fifty: pods.String(),
		wasmPod: module.manifest("bench", 1), vmPod: inVM.manifest("bench", 1),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
