package supervise

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/tests/host"
)

// TestBoot boots a VM up to the first answer and powers it off in order.
func TestBoot(t *testing.T) {
	m := boot(t, vmm.QEMU{}, nil)
	t.Logf("first answer after %v", time.Since(m.began))
	if got := m.ask(request{Action: "ping"}); !strings.Contains(shared.image.Release, got.Release) {
		t.Errorf("the guest runs %q, want %q", got.Release, shared.image.Release)
	}
	begin := time.Now()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.ends(0, "")
	if took := time.Since(begin); took > m.powerOff() {
		t.Errorf("it took %v: the guest was not asked, or did not power off", took)
	}
}

// TestMuteGuest: a guest that does not say that it is there is found all the same.
func TestMuteGuest(t *testing.T) {
	m := boot(t, vmm.QEMU{}, func(c *Config) { c.VM.Cmdline = "mute" })
	t.Logf("first answer after %v", time.Since(m.began))
}

// TestJail: what the VMM is and sees.
func TestJail(t *testing.T) {
	m := boot(t, vmm.QEMU{}, nil)
	for _, word := range []string{"qemu", "vhost-device-vsock"} {
		if word != "qemu" && m.VM.Vsock.Kind != vmm.VsockHybrid {
			continue
		}
		pid := m.pidOf(word)
		status := string(read(t, pid, "status"))
		for _, want := range []string{"NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapAmb:\t0000000000000000"} {
			if !strings.Contains(status, want) {
				t.Errorf("%s: no %q in its status:\n%s", word, want, status)
			}
		}
		if word == "qemu" && !strings.Contains(status, "Seccomp:\t2") {
			t.Errorf("%s has no system call filter:\n%s", word, status)
		}
		if !strings.Contains(status, "Uid:\t1900000042\t1900000042\t1900000042\t1900000042") {
			t.Errorf("%s is not the VM's user:\n%s", word, status)
		}
		for _, path := range []string{"/etc/passwd", "/root", "/proc", "/sys", "/var", "/run/systemd", "/home", "/dev/net"} {
			if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root", path)); err == nil {
				t.Errorf("%s sees %s", word, path)
			}
		}
		for line := range strings.Lines(string(read(t, pid, "mountinfo"))) {
			fields := strings.Fields(line)
			target, options := fields[4], fields[5]
			writable := strings.HasPrefix(options, "rw")
			if writable && target != "/" && !strings.HasPrefix(target, "/dev/") && !strings.HasSuffix(target, "/s") {
				t.Errorf("%s may write to %s", word, line)
			}
			if !strings.Contains(options, "nosuid") {
				t.Errorf("%s: %s", word, line)
			}
		}
	}
}

// read reads a file of a process's directory in /proc.
func read(t *testing.T, pid int, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestKilled: whoever of them dies, all end.
func TestKilled(t *testing.T) {
	for _, c := range []struct{ program, want string }{
		{"qemu", "the VM has ended: signal: killed"},
		{"vhost-device-vsock", "lost its vsock device"},
	} {
		t.Run(c.program, func(t *testing.T) {
			m := boot(t, vmm.QEMU{}, nil)
			if c.program != "qemu" && m.VM.Vsock.Kind != vmm.VsockHybrid {
				t.Skip("the host has a vsock device of its own")
			}
			if err := syscall.Kill(m.pidOf(c.program), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			m.ends(ExitFailure, c.want)
		})
	}
}

// TestSupervisorKilled: the kernel takes everything along.
func TestSupervisorKilled(t *testing.T) {
	m := boot(t, vmm.QEMU{}, nil)
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-m.exited
	for deadline := time.Now().Add(10 * time.Second); len(m.processes()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("processes go on: %v", m.processes())
		}
	}
	// Files of a supervisor that was killed are cleared by the next one.
	m.replaced = true
	launch(t, m.Config).answers()
}

// TestGuestEnds: a guest that panics or powers off by itself is a VM that has ended.
func TestGuestEnds(t *testing.T) {
	for _, action := range []string{"panic", "poweroff"} {
		t.Run(action, func(t *testing.T) {
			m := boot(t, vmm.QEMU{}, nil)
			_, _ = m.try(request{Action: action})
			m.ends(ExitFailure, "the VM has ended")
		})
	}
}

// TestMonitorFails: a VMM that ends before it has answered is the end of it, at once.
func TestMonitorFails(t *testing.T) {
	c := newConfig(t, vmm.QEMU{}, nil)
	c.VM.Program = "/usr/bin/false"
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Dir, "vm.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	out, err := exec.Command("/proc/self/exe", "--config", file).CombinedOutput()
	if err == nil || string(out) != "magikvmm: the VM has ended: exit status 1\n" || time.Since(begin) > host.Patience(10*time.Second) {
		t.Errorf("%v after %v: %q", err, time.Since(begin), out)
	}
}

// TestUnresponsiveGuest: a guest that does not power off is ended.
func TestUnresponsiveGuest(t *testing.T) {
	m := launch(t, newConfig(t, vmm.QEMU{}, func(c *Config) { c.PowerOffMillis = 300 }))
	// Long before it answers.
	begin := time.Now()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.ends(0, "")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestHang: a guest that has answered and does not any more is ended, but not for a pause.
func TestHang(t *testing.T) {
	const limit = 6 * time.Second
	m := boot(t, vmm.QEMU{}, func(c *Config) { c.WatchdogMillis = int(limit.Milliseconds()) })
	m.pinged() // the supervisor has had an answer, too
	qemu := m.pidOf("qemu")
	if err := syscall.Kill(qemu, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(limit / 3) // the pause
	if err := syscall.Kill(qemu, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.pinged()
	begin := time.Now()
	if err := syscall.Kill(qemu, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.ends(ExitFailure, "the guest has not answered for 6s")
	if took := time.Since(begin); took < limit/2 {
		t.Errorf("it took %v", took)
	}
}
