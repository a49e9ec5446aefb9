package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

// helperEnv makes this test binary a program that boots a host, prints its name and PID, and waits
// to be killed.
const helperEnv = "MAGIKHOST_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		h, err := host.Boot(context.Background(), host.Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(h.Name(), h.PID())
		select {}
	}
	host.Main(m)
}

func TestRunTellsOutputAndStatus(t *testing.T) {
	h := host.ForTest(t)
	for _, tc := range []struct {
		name, script string
		want         host.Result
	}{
		{"output", "echo out; echo err >&2", host.Result{Stdout: "out\n", Stderr: "err\n"}},
		{"exit status", "exit 7", host.Result{Code: 7}},
		{"signal", "kill -9 $$", host.Result{Code: 137}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := h.Run(t.Context(), "sh", "-c", tc.script)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want.Code == 137 {
				got.Stderr = "" // the shell says Killed
			}
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestSystemIsWhole(t *testing.T) {
	h := host.ForTest(t)
	for _, tc := range []struct {
		name string
		argv []string
		want string
	}{
		{"PID 1", []string{"cat", "/proc/1/comm"}, "systemd\n"},
		{"state", []string{"systemctl", "is-system-running"}, "running\n"},
		{"bus", []string{"systemctl", "is-active", "dbus.service"}, "active\n"},
		{"journal", []string{"systemctl", "is-active", "systemd-journald.service"}, "active\n"},
		{"only a loopback", []string{"ls", "/sys/class/net"}, "lo\n"},
		{"state directory on tmpfs", []string{"stat", "-f", "-c", "%T", "/var/lib/magikpod"}, "tmpfs\n"},
		{"cgroup v2", []string{"stat", "-f", "-c", "%T", "/sys/fs/cgroup"}, "cgroup2fs\n"},
		{"nothing enabled", []string{"sh", "-c", "ls /etc/systemd/system | grep -c wants || :"}, "0\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := h.Output(t.Context(), tc.argv...); err != nil || got != tc.want {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
	t.Run("polkit", func(t *testing.T) {
		out, err := h.Output(t.Context(), "busctl", "call", "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority",
			"org.freedesktop.PolicyKit1.Authority", "EnumerateActions", "s", "")
		if err != nil || !strings.Contains(out, "org.freedesktop.systemd1.manage-units") {
			t.Errorf("polkit does not list the actions of systemd: %v\n%.300s", err, out)
		}
	})
}

func TestStartStreams(t *testing.T) {
	h := host.ForTest(t)
	var out bytes.Buffer
	p, err := h.Start(t.Context(), host.Command{
		Argv: []string{"sh", "-c", `pwd; echo "$GREETING"; cat`}, Env: []string{"GREETING=hello world"}, Dir: "/usr",
		Stdin: strings.NewReader("from stdin\n"), Stdout: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(); code != 0 || err != nil {
		t.Fatalf("exit status %d, %v", code, err)
	}
	if got, want := out.String(), "/usr\nhello world\nfrom stdin\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestCancelEndsTheUnit: a command whose context ends leaves nothing running in the host.
func TestCancelEndsTheUnit(t *testing.T) {
	h := host.ForTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(writerFunc, 1)
	p, err := h.Start(ctx, host.Command{Argv: []string{"sh", "-c", "echo started; exec sleep 1000"}, Stdout: started})
	if err != nil {
		t.Fatal(err)
	}
	<-started
	cancel()
	if _, err := p.Wait(); err == nil {
		t.Error("no error from a command that was cancelled")
	}
	if r, err := h.Run(t.Context(), "pgrep", "-x", "sleep"); err != nil || r.Code != 1 {
		t.Errorf("the command still runs: %+v, %v", r, err)
	}
}

// writerFunc hands on what is written to it.
type writerFunc chan string

func (w writerFunc) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

func TestFiles(t *testing.T) {
	h := host.ForTest(t)
	local := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(local, []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Push(local, "/opt/new/dir/prog", 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := h.Output(t.Context(), "sh", "-c", "stat -c %a /opt/new/dir/prog; cat /opt/new/dir/prog"); err != nil || out != "755\ncontent\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := os.Stat("/opt/new/dir"); err == nil {
		t.Error("the file was written to the build host")
	}
	pulled := filepath.Join(t.TempDir(), "out")
	if err := h.Pull("/opt/new/dir/prog", pulled); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(pulled); err != nil || string(got) != "content\n" {
		t.Errorf("pulled %q, %v", got, err)
	}
}

// TestFilesFollowSymlinksInTheHost: an absolute symlink leads to the host's file, not to the build
// host's.
func TestFilesFollowSymlinksInTheHost(t *testing.T) {
	h := host.ForTest(t)
	if _, err := h.Output(t.Context(), "ln", "-sfn", "/etc", "/opt/link"); err != nil {
		t.Fatal(err)
	}
	got, err := h.ReadFile("/opt/link/hostname")
	if err != nil || string(got) != h.Name()+"\n" {
		t.Errorf("got %q, %v; want the name of the host", got, err)
	}
	if err := h.WriteFile("/opt/link/magikhost-test", "x", 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/etc/magikhost-test"); err == nil {
		t.Error("the file was written to the build host")
	}
}

func TestJournal(t *testing.T) {
	h := host.ForTest(t)
	if _, err := h.Output(t.Context(), "sh", "-c", "echo a line of its own | systemd-cat -t magikhost-test; journalctl --sync"); err != nil {
		t.Fatal(err)
	}
	if text, err := h.Journal(t.Context(), "-t", "magikhost-test"); err != nil || !strings.Contains(text, "a line of its own") {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err := h.Journal(t.Context(), "-t", "nobody-of-that-name"); err != nil || text != "" {
		t.Errorf("no match: got %q, %v", text, err)
	}
}

// TestInstallAndTwoHosts: an installed tree is there from the start of the boot, and hosts know
// nothing of one another.
func TestInstallAndTwoHosts(t *testing.T) {
	first := host.ForTest(t)
	tree := t.TempDir()
	unit := filepath.Join(tree, "usr/lib/systemd/system/magikhost-test.service")
	wants := filepath.Join(filepath.Dir(unit), "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../magikhost-test.service", filepath.Join(wants, "magikhost-test.service")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(unit, []byte("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	opts, err := host.OptionsFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	opts.Install = tree
	second, err := host.Boot(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if out, err := second.Output(t.Context(), "systemctl", "is-active", "magikhost-test.service"); err != nil || out != "active\n" {
		t.Errorf("the installed unit is not active: %q, %v", out, err)
	}
	if r, err := first.Run(t.Context(), "systemctl", "cat", "magikhost-test.service"); err != nil || r.Code == 0 {
		t.Errorf("the other host has the unit too: %+v, %v", r, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	checkGone(t, second.Name(), second.PID())
}

// TestOwnerKilled: a host whose owner was killed dies with it, and the next sweep removes what is left.
func TestOwnerKilled(t *testing.T) {
	host.ForTest(t) // or skip
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(exe)
	owner.Env = append(os.Environ(), helperEnv+"=1")
	owner.Stderr = os.Stderr
	owner.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var name string
	var pid int
	if _, err := fmt.Fscan(stdout, &name, &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the host does not run: %v", err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	for deadline := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the host outlives its owner")
		}
	}
	if err := host.Sweep(); err != nil {
		t.Fatal(err)
	}
	checkGone(t, name, pid)
}

// checkGone fails the test when something of the host is left on the build host.
func checkGone(t *testing.T, name string, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("its process %s still exists", strconv.Itoa(pid))
	}
	if _, err := os.Stat("/run/magikhost/" + name); err == nil {
		t.Error("its directory below /run is left")
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), name) {
		t.Errorf("a mount of it is left, or %v", err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + name + "*", "/sys/fs/cgroup/unified/*" + name + "*", "/sys/fs/cgroup/systemd/*" + name + "*", "/sys/fs/cgroup/system.slice/*" + name + "*", "/run/systemd/nspawn/*/" + name} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
}
