// Command magikkrun becomes one virtual machine of libkrun's: it loads the library, without cgo, tells it what the configuration says, and does not return. It is started
// by magikvmm in a jail, not by people.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/ebitengine/purego"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// libkrun's threads are its own; the one that calls it becomes the machine.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) != 3 || os.Args[1] != "--config" {
		os.Stderr.WriteString("usage: magikkrun --config FILE\n")
		os.Exit(64)
	}
	err := run(os.Args[2])
	os.Stderr.WriteString("magikkrun: " + err.Error() + "\n")
	os.Exit(1)
}

// What include/libkrun.h has of constants.
const (
	kernelELF     = 1
	diskRaw       = 0
	tapVirtioNet  = 0
	noTSI         = 0
	listenOnHost  = true
	noNetFeatures = 0
	noDAX         = 0
	shareReadOnly = true
)

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var c vmm.KrunConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("cannot read configuration %s: %w", path, err)
	}
	library, err := purego.Dlopen(c.Library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("cannot load libkrun: %w", err)
	}
	return start(library, &c)
}

// start makes the calls; the last one only returns when it fails.
func start(library uintptr, c *vmm.KrunConfig) error {
	var createCtx func() int32
	var setVMConfig func(ctx uint32, cpus uint8, mib uint32) int32
	var setKernel func(ctx uint32, kernel string, format uint32, initrd, cmdline string) int32
	var addDisk func(ctx uint32, id, path string, format uint32, readOnly bool) int32
	var addNet func(ctx uint32, tap string, mac *byte, features, flags uint32) int32
	var noImplicitVsock, startEnter func(ctx uint32) int32
	var addVsock func(ctx, features uint32) int32
	var addVsockPort func(ctx, port uint32, path string, listen bool) int32
	var addVirtiofs func(ctx uint32, tag, path string, window uint64, readOnly bool) int32
	for name, function := range map[string]any{
		"krun_create_ctx": &createCtx, "krun_set_vm_config": &setVMConfig, "krun_set_kernel": &setKernel, "krun_add_disk2": &addDisk, "krun_add_net_tap": &addNet,
		"krun_disable_implicit_vsock": &noImplicitVsock, "krun_add_vsock": &addVsock, "krun_add_vsock_port2": &addVsockPort, "krun_add_virtiofs3": &addVirtiofs, "krun_start_enter": &startEnter,
	} {
		address, err := purego.Dlsym(library, name)
		if err != nil {
			return fmt.Errorf("this libkrun is too old: it has no %s", name)
		}
		purego.RegisterFunc(function, address)
	}
	created := createCtx()
	if created < 0 {
		return failure("krun_create_ctx", created)
	}
	ctx := uint32(created)
	calls := []struct {
		name string
		call func() int32
	}{
		{"krun_set_vm_config", func() int32 { return setVMConfig(ctx, uint8(min(c.CPUs, 255)), uint32(c.MemoryMiB)) }},
		{"krun_set_kernel", func() int32 { return setKernel(ctx, c.Kernel, kernelELF, c.Initrd, c.Cmdline) }},
		// Of its own accord it would connect the guest's sockets with the host's network.
		{"krun_disable_implicit_vsock", func() int32 { return noImplicitVsock(ctx) }},
		{"krun_add_vsock", func() int32 { return addVsock(ctx, noTSI) }},
		{"krun_add_vsock_port2", func() int32 { return addVsockPort(ctx, vmm.AgentPort, c.VsockPath, listenOnHost) }},
		{"krun_add_virtiofs3", func() int32 { return addVirtiofs(ctx, c.ShareTag, c.ShareDir, noDAX, shareReadOnly) }},
	}
	for _, d := range c.Disks {
		calls = append(calls, struct {
			name string
			call func() int32
		}{"krun_add_disk2", func() int32 { return addDisk(ctx, strings.ReplaceAll(d.Serial, "-", "_"), d.Path, diskRaw, d.ReadOnly) }})
	}
	if c.NIC != nil {
		mac, err := net.ParseMAC(c.NIC.MAC)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("cannot use the address %q", c.NIC.MAC)
		}
		calls = append(calls, struct {
			name string
			call func() int32
		}{"krun_add_net_tap", func() int32 { return addNet(ctx, c.NIC.Tap, &mac[0], noNetFeatures, tapVirtioNet) }})
	}
	for _, c := range calls {
		if result := c.call(); result < 0 {
			return failure(c.name, result)
		}
	}
	return failure("krun_start_enter", startEnter(ctx))
}

// failure: results are negative error numbers.
func failure(call string, result int32) error {
	return fmt.Errorf("cannot start the machine: %s: %w", call, syscall.Errno(-result))
}
