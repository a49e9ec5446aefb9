package supervise

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// BenchmarkBoot measures the time to the guest's first answer, of bare QEMU and of the supervisor
// in turns, and what the processes of a VM have beyond the guest's memory: MAGIKHOST_ROOT=trixie
// make host-test PKG=./runtime/microvm/supervise TESTFLAGS='-run=^$ -bench=Boot -benchtime=10x'
func BenchmarkBoot(b *testing.B) {
	quiet := func(c *Config) { c.VM.Console = false }
	var bare, supervised []float64
	memory := map[string]float64{}
	for b.Loop() {
		bare = append(bare, bootBare(b, newConfig(b, vmm.QEMU{}, quiet)).Seconds())
		m := launch(b, newConfig(b, vmm.QEMU{}, quiet))
		supervised = append(supervised, m.answers().Seconds())
		for pid, line := range m.processes() {
			name, _, _ := strings.Cut(filepath.Base(strings.Fields(line)[0]), "-")
			memory[name] += float64(ownMemory(b, pid))
		}
		memory["supervise.test"] += float64(ownMemory(b, m.cmd.Process.Pid))
		m.close()
	}
	b.Logf("seconds, in turns: bare %.2f, supervised %.2f", bare, supervised)
	middle := func(list []float64) float64 { slices.Sort(list); return list[len(list)/2] }
	b.ReportMetric(middle(bare), "s-bare")
	b.ReportMetric(middle(supervised), "s-supervised")
	for name, bytes := range memory {
		b.ReportMetric(bytes/float64(len(bare))/1e6, "MB-"+name)
	}
}

// bootBare is the same VM without a supervisor and jails.
func bootBare(b *testing.B, c *Config) time.Duration {
	if err := os.Mkdir(c.socketDir(), 0o700); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var ready *net.UnixListener
	run := func(argv []string) {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { cancel(); _ = cmd.Wait() })
	}
	command, err := vmm.QEMU{}.Command(&c.VM)
	if err != nil {
		b.Fatal(err)
	}
	if gate := command.Gate; gate != nil {
		if ready, err = net.ListenUnix("unix", &net.UnixAddr{Name: gate.Ready, Net: "unix"}); err != nil {
			b.Fatal(err)
		}
		defer ready.Close()
		run(command.Helpers["vsock"].Argv)
		for {
			if _, err := os.Stat(c.VM.Vsock.Path + ".vhost"); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	argv := slices.Clone(command.Argv)
	for i, arg := range argv {
		arg = strings.ReplaceAll(strings.ReplaceAll(arg, "/vm/kernel", c.VM.Kernel), "/vm/initrd", c.VM.Initrd)
		for n, fd := range command.FDs {
			arg = strings.ReplaceAll(arg, fmt.Sprintf("fd=%d", n+3), "path="+fd.Path)
		}
		argv[i] = arg
	}
	run(argv)
	m := &testVM{Config: c, t: b, began: begin, exited: make(chan struct{})}
	if ready != nil {
		conn, err := ready.Accept()
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
		if err := os.Rename(command.Gate.Path, c.VM.Vsock.Path); err != nil {
			b.Fatal(err)
		}
	}
	took := m.answers()
	cancel()
	return took
}

// ownMemory is what a process has for itself, without the guest's memory and without what it only
// reads (proc_pid_smaps(5), Pss_Dirty).
func ownMemory(b *testing.B, pid int) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0 // it has ended
	}
	defer f.Close()
	var total int64
	guest := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		var kib int64
		if first, _, _ := strings.Cut(line, " "); strings.Contains(first, "-") && !strings.HasSuffix(first, ":") {
			guest = strings.Contains(line, "memfd:memory")
		} else if _, err := fmt.Sscanf(line, "Pss_Dirty: %d kB", &kib); err == nil && !guest {
			total += kib << 10
		}
	}
	return total
}
