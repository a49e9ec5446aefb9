//go:build linux

package jail

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/sdnotify"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/shim"
)

// Config is what [Run] reads. Paths are those of the mount namespace that it is started in.
type Config struct {
	Module string `json:"module"`
	Entry  string `json:"entry,omitempty"` // function; empty: _start
	Cache  string `json:"cache"`           // of machine code
	// Wasmtime is the program that runs the module, followed by the files that it needs; empty:
	// this process does.
	Wasmtime []string `json:"wasmtime,omitempty"`
	// Root is where the container's root file system is mounted; ReadOnlyRoot says that it cannot
	// be written to. Volumes are another matter.
	Root         string  `json:"root"`
	Cwd          string  `json:"cwd"` // in the root; made when it is missing
	ReadOnlyRoot bool    `json:"readOnlyRoot,omitempty"`
	Mounts       []Mount `json:"mounts,omitempty"` // parents before children

	Args   []string   `json:"args"`
	Env    []string   `json:"env,omitempty"`
	Listen []Listener `json:"listen,omitempty"`
	// MemoryBytes bounds the guest's memory; 0: 4 GiB. The unit's MemoryMax= bounds all of the process.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`

	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	Groups  []uint32          `json:"groups,omitempty"`
	Sysctls map[string]string `json:"sysctls,omitempty"` // of the pod's namespaces

	Log    string `json:"log"`    // where the reason of a failed start goes
	Status string `json:"status"` // text for the service manager when the guest runs
}

// Mount is a volume of the container.
type Mount struct {
	Source      string `json:"source,omitempty"` // empty: a tmpfs
	Destination string `json:"destination"`      // in the container's root
	ReadOnly    bool   `json:"readOnly,omitempty"`
	Recursive   bool   `json:"recursive,omitempty"` // ReadOnly counts for the mounts below, too
	Slave       bool   `json:"slave,omitempty"`     // mounts that the host makes in it later show up
}

// Listener is a TCP socket for the guest.
type Listener struct {
	Name string `json:"name"`
	Port int    `json:"port"`
}

// Run jails this process, runs the guest and returns the exit code. It is the whole of the
// process's work: the jail cannot be left.
func Run(configPath string) int {
	var config Config
	if err := shim.ReadConfig(configPath, &config); err != nil {
		return failed("", err)
	}
	program, err := prepare(&config)
	if err != nil {
		return failed(config.Log, err)
	}
	if len(config.Wasmtime) > 0 {
		err := becomeWasmtime(&config)
		fmt.Fprintln(os.Stderr, "magikwasm: "+oneLine(err))
		return shim.ExitFailure
	}
	dirs := []engine.Dir{{Host: "/", Guest: "/", Writable: true}} // the kernel says what can be written to
	guest := engine.Config{Args: config.Args, Env: config.Env, Stdout: os.Stdout, Stderr: os.Stderr, Dirs: dirs, Entry: config.Entry}
	for _, l := range config.Listen {
		guest.Listeners = append(guest.Listeners, engine.Listener{Port: l.Port})
	}
	code, err := program.Run(context.Background(), guest)
	if err != nil {
		fmt.Fprintln(os.Stderr, "magikwasm: "+oneLine(err))
		if code < 0 {
			return shim.ExitFailure
		}
	}
	return code
}

// prepare does all that needs the host, and then leaves it. There is no program when wasmtime is to
// run the module.
func prepare(config *Config) (engine.Program, error) {
	manager, err := sdnotify.Dial()
	if err != nil {
		return nil, err
	}
	defer manager.Close()
	for name, value := range config.Sysctls {
		if err := crun.SetSysctl(name, value); err != nil {
			return nil, fmt.Errorf("cannot set %s: %w", name, err)
		}
	}
	module, err := ReadModule(config.Module)
	if err != nil {
		return nil, err
	}
	steps := []func(*Config) error{mountVolumes, enterRoot, dropPrivileges, defaultSignals, filterCalls}
	var program engine.Program
	if len(config.Wasmtime) > 0 {
		furnish := func(config *Config) error { return furnishJail(config, module) }
		steps = []func(*Config) error{mountVolumes, furnish, enterRoot, dropPrivileges}
	} else if program, err = engine.New(config.Cache).Load(context.Background(), module, engine.LoadOptions{MemoryBytes: config.MemoryBytes}); err != nil {
		return nil, err
	} else if err = program.Check(config.Entry); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(config.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	for _, step := range steps {
		if err := step(config); err != nil {
			_ = crun.LogError(log, oneLine(err)) // its path may be out of reach by now
			return nil, err
		}
	}
	return program, manager.Send("READY=1\nSTATUS=" + config.Status)
}

// ReadModule reads a module of the host.
func ReadModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, engine.MaxModuleBytes+1))
}

// failed reports why a guest could not be started.
func failed(log string, err error) int {
	fmt.Fprintln(os.Stderr, "magikwasm: "+oneLine(err))
	if log != "" {
		if f, openErr := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); openErr == nil {
			_ = crun.LogError(f, oneLine(err))
			_ = f.Close()
		}
	}
	if errkind.KindOf(err) == errkind.Unsupported {
		return shim.ExitUsage
	}
	return shim.ExitFailure
}

func oneLine(err error) string { return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", " ") }
