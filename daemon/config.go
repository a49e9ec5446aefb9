package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// DefaultConfigFile is where the configuration is read from.
const DefaultConfigFile = "/etc/magikpod/magikpod.yaml"

// maxConfigBytes bounds the configuration file.
const maxConfigBytes = 1 << 20

// Config is the configuration of the daemon: /etc/magikpod/magikpod.yaml, magikpod.yaml(5). Every
// key has a default.
type Config struct {
	StateDir string `json:"stateDir,omitempty"` // records, images, volumes
	RunDir   string `json:"runDir,omitempty"`   // sockets, pipes, bundles: gone after a reboot

	LogDriver shim.LogDriver `json:"logDriver,omitempty"` // journal or file
	LogDir    string         `json:"logDir,omitempty"`    // of the driver file

	Runtime   string `json:"runtime,omitempty"`   // crun, runc, youki or a path; empty: the first that is installed
	MaxPods   int    `json:"maxPods,omitempty"`   // 1 to pod.MaxPods
	PIDsLimit int64  `json:"pidsLimit,omitempty"` // processes and threads of one pod

	BackoffInitial metav1.Duration `json:"backoffInitial,omitzero"` // before the second restart of a container
	BackoffMax     metav1.Duration `json:"backoffMax,omitzero"`
	BackoffReset   metav1.Duration `json:"backoffReset,omitzero"` // running that long forgets the restarts

	IdleTimeout metav1.Duration `json:"idleTimeout,omitzero"` // the daemon leaves when it has had no pods and no clients for that long
	JobTimeout  metav1.Duration `json:"jobTimeout,omitzero"`  // of run and start, when the caller gives none

	Network NetworkConfig `json:"network,omitzero"`
	MicroVM MicroVMConfig `json:"microvm,omitzero"`
	Wasm    WasmConfig    `json:"wasm,omitzero"`
}

// WasmConfig says how pods of the class pod-wasm run.
type WasmConfig struct {
	Components string `json:"components,omitempty"` // wasmtime, or its path; empty: components are refused
}

// check returns the first value that makes no sense.
func (c *WasmConfig) check() error {
	if c.Components != "" && c.Components != "wasmtime" && !filepath.IsAbs(c.Components) {
		return fmt.Errorf("wasm.components: %q is neither wasmtime nor an absolute path", c.Components)
	}
	return nil
}

// NetworkConfig says where pods are connected. Empty fields keep the defaults of package netsetup.
type NetworkConfig struct {
	Bridge string       `json:"bridge,omitempty"`
	IPv4   netip.Prefix `json:"ipv4,omitzero"`
	IPv6   netip.Prefix `json:"ipv6,omitzero"`
}

// check returns the first value that makes no sense.
func (c *NetworkConfig) check() error {
	if err := (netsetup.Config{Bridge: c.Bridge, IPv4: c.IPv4, IPv6: c.IPv6}).Check(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

// MicroVMConfig says how the VMs of pods of the class pod-microvm-containers are made. Empty fields
// keep the defaults of package runtime/microvm.
type MicroVMConfig struct {
	VMM     string `json:"vmm,omitempty"`     // qemu or cloud-hypervisor; empty: the first that can be used
	Program string `json:"program,omitempty"` // its path
	Machine string `json:"machine,omitempty"` // of qemu: pc, q35 or microvm
	Accel   string `json:"accel,omitempty"`   // kvm or tcg
	Kernel  string `json:"kernel,omitempty"`  // a pattern of file names
	Runtime string `json:"runtime,omitempty"` // the path of the OCI runtime that is put into the VMs
	// Memory is what the containers of a pod without a limit have together, CPUs how many CPUs its
	// VM has.
	Memory resource.Quantity `json:"memory,omitzero"`
	CPUs   int               `json:"cpus,omitempty"`
	// Scratch is the size of the disk for what containers write.
	Scratch resource.Quantity `json:"scratch,omitzero"`
}

// check returns the first value that makes no sense.
func (c *MicroVMConfig) check() error {
	if c.VMM == "firecracker" || c.VMM == "libkrun" {
		return fmt.Errorf("microvm.vmm: %s has no driver any more (docs/RATIONALE.md says why): use qemu or cloud-hypervisor", c.VMM)
	}
	for _, choice := range []struct {
		key, value string
		from       []string
	}{
		{"vmm", c.VMM, []string{"qemu", "cloud-hypervisor"}},
		{"machine", c.Machine, []string{"pc", "q35", "microvm"}},
		{"accel", c.Accel, []string{"kvm", "tcg"}},
	} {
		if choice.value != "" && !slices.Contains(choice.from, choice.value) {
			return fmt.Errorf("microvm.%s: %q is none of %s", choice.key, choice.value, strings.Join(choice.from, ", "))
		}
	}
	for key, path := range map[string]string{"program": c.Program, "kernel": c.Kernel, "runtime": c.Runtime} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("microvm.%s: %q is not absolute", key, path)
		}
	}
	for key, size := range map[string]struct {
		value    resource.Quantity
		min, max int64
	}{"memory": {c.Memory, 32 << 20, 1 << 44}, "scratch": {c.Scratch, 64 << 20, 1 << 44}} {
		if v := size.value.Value(); v != 0 && (v < size.min || v > size.max) {
			return fmt.Errorf("microvm.%s: %s is not in 32Mi (scratch: 64Mi) to 16Ti", key, size.value.String())
		}
	}
	if c.CPUs < 0 || c.CPUs > 1024 {
		return fmt.Errorf("microvm.cpus: %d is not in 1 to 1024", c.CPUs)
	}
	return nil
}

// DefaultConfig is the configuration without a file.
func DefaultConfig() Config {
	return Config{
		StateDir:       "/var/lib/magikpod",
		RunDir:         "/run/magikpod",
		LogDriver:      shim.LogJournal,
		LogDir:         "/var/log/pods",
		MaxPods:        pod.MaxPods,
		PIDsLimit:      4096,
		BackoffInitial: metav1.Duration{Duration: pod.DefaultBackoffInitial},
		BackoffMax:     metav1.Duration{Duration: pod.DefaultBackoffMax},
		BackoffReset:   metav1.Duration{Duration: pod.DefaultBackoffReset},
		IdleTimeout:    metav1.Duration{Duration: time.Minute},
		JobTimeout:     metav1.Duration{Duration: 10 * time.Minute},
	}
}

// LoadConfig reads the configuration file at path; a missing one is the default. Invalid: unknown
// keys, a wrong type or values out of range; the error has a line for each.
func LoadConfig(path string) (Config, error) {
	config := DefaultConfig()
	file, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return config, nil
	}
	var data []byte
	if err == nil {
		data, err = atomicfile.Read(file, maxConfigBytes)
	}
	if err != nil {
		return config, pod.Errorf(pod.Unavailable, "cannot read the configuration: %w", err)
	}
	if data, err = yaml.YAMLToJSONStrict(data); err != nil {
		return config, pod.Errorf(pod.Invalid, "cannot read the configuration %s: %w", path, err)
	}
	unknown, err := kjson.UnmarshalStrict(data, &config)
	if err != nil {
		return config, pod.Errorf(pod.Invalid, "cannot read the configuration %s: %w", path, err)
	}
	if problems := append(unknown, config.check()...); len(problems) > 0 {
		return config, pod.Errorf(pod.Invalid, "cannot use the configuration %s: %w", path, errors.Join(problems...))
	}
	return config, nil
}

// check returns the values that are out of range.
func (c *Config) check() (problems []error) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for _, d := range []struct{ key, dir string }{{"stateDir", c.StateDir}, {"runDir", c.RunDir}, {"logDir", c.LogDir}} {
		if !filepath.IsAbs(d.dir) || filepath.Clean(d.dir) != d.dir || d.dir == "/" {
			add("%s: %q is not a clean absolute path", d.key, d.dir)
		}
	}
	if c.LogDriver != shim.LogJournal && c.LogDriver != shim.LogFile {
		add("logDriver: %q is neither journal nor file", c.LogDriver)
	}
	if c.MaxPods < 1 || c.MaxPods > pod.MaxPods {
		add("maxPods: %d is not in 1 to %d", c.MaxPods, pod.MaxPods)
	}
	if c.PIDsLimit < 16 || c.PIDsLimit > 1<<22 {
		add("pidsLimit: %d is not in 16 to %d", c.PIDsLimit, 1<<22)
	}
	for _, d := range []struct {
		key   string
		value metav1.Duration
	}{
		{"backoffInitial", c.BackoffInitial}, {"backoffMax", c.BackoffMax}, {"backoffReset", c.BackoffReset},
		{"idleTimeout", c.IdleTimeout}, {"jobTimeout", c.JobTimeout},
	} {
		if d.value.Duration < time.Millisecond || d.value.Duration > 24*time.Hour {
			add("%s: %s is not in 1ms to 24h", d.key, d.value.Duration)
		}
	}
	for _, err := range []error{c.Network.check(), c.Wasm.check(), c.MicroVM.check()} {
		if err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

// policy is what the planner needs of the configuration.
func (c *Config) policy() pod.Policy {
	return pod.Policy{BackoffInitial: c.BackoffInitial.Duration, BackoffMax: c.BackoffMax.Duration, BackoffReset: c.BackoffReset.Duration}
}

// podStateDir and podRunDir hold what belongs to one pod.
func (c *Config) podStateDir(uid string) string { return filepath.Join(c.StateDir, "pods", uid) }
func (c *Config) podRunDir(uid string) string   { return filepath.Join(c.RunDir, "pods", uid) }
