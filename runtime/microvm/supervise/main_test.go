package supervise

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/guestimage"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/tests/host"
)

// The test binary is the guest's first process, and the supervisor.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		if _, err := os.Stat("/modules"); err == nil {
			guestInit()
		}
	}
	if len(os.Args) == 3 && os.Args[1] == "--config" {
		os.Exit(Run(os.Args[2]))
	}
	code := m.Run()
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// shared is the guest image of all tests.
var shared struct {
	once  sync.Once
	dir   string
	image guestimage.Image
	err   error
}

func guestImage(t testing.TB) guestimage.Image {
	t.Helper()
	shared.once.Do(func() {
		shared.dir, shared.err = os.MkdirTemp("/var/tmp", "supervise-")
		// Another kernel than the host's, to be tried by hand: a pattern, as /somewhere/boot/vmlinuz-*.
		kernel, modules, err := guestimage.FindKernel(os.Getenv("MAGIKPOD_TEST_KERNEL"))
		if shared.err = errors.Join(shared.err, err); shared.err != nil {
			return
		}
		begin := time.Now()
		shared.image, shared.err = guestimage.Cache{Dir: shared.dir}.Build(context.Background(), guestimage.Parts{Kernel: kernel, Modules: modules, Init: "/proc/self/exe"})
		t.Logf("guest image made in %v", time.Since(begin))
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.image
}

// testVM is a supervisor with its VM.
type testVM struct {
	*Config
	t      testing.TB
	cmd    *exec.Cmd
	output *bytes.Buffer
	exited chan struct{}
	began  time.Time
	// replaced: another supervisor has taken its place.
	replaced bool
}

// newConfig is a VM that can be run here; else the test is skipped.
func newConfig(t testing.TB, driver vmm.Driver, change func(c *Config)) *Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := &Config{UID: UserOf(42), GID: UserOf(42)}
	c.VM = vmm.Config{Driver: driver.Name(), Accel: host.Accel(), CPUs: 1, MemoryMiB: 256, Vsock: vmm.Vsock{CID: 42}, Console: true}
	if change != nil {
		change(c)
	}
	if c.VM.Machine == "microvm" && c.VM.Accel == vmm.AccelTCG {
		c.VM.TSCKHz = vmm.HostTSC()
	}
	kind, err := vmm.FindVsock(driver, &c.VM)
	if err != nil {
		t.Skipf("%s cannot be used here: %v (try: MAGIKHOST_ROOT=trixie make host-test PKG=./runtime/microvm/supervise)", driver.Name(), err)
	}
	c.VM.Vsock.Kind = kind
	image := guestImage(t)
	c.VM.Kernel, c.VM.Initrd = image.Kernel, image.Initrd
	// The names of sockets are short (unix(7)).
	if c.Dir, err = os.MkdirTemp("/run", "supervise-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(c.Dir) })
	c.SetPaths()
	return c
}

// boot starts a VM and waits until the guest answers. When the test ends the VM is stopped and
// nothing may be left.
func boot(t testing.TB, driver vmm.Driver, change func(c *Config)) *testVM {
	t.Helper()
	m := launch(t, newConfig(t, driver, change))
	m.answers()
	return m
}

// launch starts a supervisor and waits for its READY=1.
func launch(t testing.TB, c *Config) *testVM {
	t.Helper()
	m := &testVM{Config: c, t: t, output: &bytes.Buffer{}, exited: make(chan struct{})}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Dir, "vm.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	notify := filepath.Join(c.Dir, "notify")
	if err := remove(notify); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	m.cmd = exec.Command("/proc/self/exe", "--config", file)
	m.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	m.cmd.WaitDelay = time.Second
	m.began = time.Now()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.cmd.Wait(); close(m.exited) }()
	t.Cleanup(func() {
		if !m.replaced {
			m.close()
		}
	})
	ready := make(chan string, 1)
	go func() {
		buf := make([]byte, 100)
		n, _ := socket.Read(buf)
		ready <- string(buf[:n])
	}()
	select {
	case state := <-ready:
		if state != "READY=1" {
			t.Fatalf("the supervisor says %q", state)
		}
	case <-m.exited:
		t.Fatalf("the supervisor has ended: %v\n%s", m.cmd.ProcessState, m.output)
	case <-time.After(host.Patience(time.Minute)):
		t.Fatal("the supervisor is not ready")
	}
	return m
}

// close stops the VM and checks that nothing is left.
func (m *testVM) close() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.exited:
	case <-time.After(host.Patience(40 * time.Second)):
		m.t.Errorf("the supervisor does not end")
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	if m.t.Failed() {
		m.t.Logf("the supervisor ended with %v and said:\n%s", m.cmd.ProcessState, m.output)
	}
	m.nothingLeft()
}

// nothingLeft: no file but the test's own, no process that has to do with the directory or is the
// VM's user's.
func (m *testVM) nothingLeft() {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		m.t.Error(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); name != "vm.json" && name != "notify" {
			m.t.Errorf("%s is left in the VM's directory", name)
		}
	}
	if left := m.processes(); len(left) > 0 {
		m.t.Errorf("processes are left: %v", left)
	}
}

// processes returns the command lines of the VM's processes.
func (m *testVM) processes() map[int]string {
	found := map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(dir + "/cmdline")
		mounts, _ := os.ReadFile(dir + "/mountinfo")
		if info.Sys().(*syscall.Stat_t).Uid == m.UID || bytes.Contains(line, []byte(m.Dir)) || bytes.Contains(mounts, []byte(m.Dir+"/"+jailDir)) {
			pid := 0
			fmt.Sscan(filepath.Base(dir), &pid)
			found[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}

// pidOf returns the process whose command line has the word in its first argument.
func (m *testVM) pidOf(word string) int {
	m.t.Helper()
	for pid, line := range m.processes() {
		if program, _, _ := strings.Cut(line, " "); strings.Contains(filepath.Base(program), word) {
			return pid
		}
	}
	m.t.Fatalf("no process of the VM is %s: %v", word, m.processes())
	return 0
}

// answers waits until the guest answers a ping, and returns how long that took from the start.
func (m *testVM) answers() time.Duration {
	m.t.Helper()
	for deadline := time.Now().Add(host.Patience(40 * time.Second)); ; time.Sleep(2 * time.Millisecond) {
		a, err := m.try(request{Action: "ping"})
		if err == nil && a.Release != "" {
			return time.Since(m.began)
		}
		select {
		case <-m.exited:
			m.t.Fatalf("the VM has ended: %s", m.output)
		default:
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the guest does not answer: %v, %v", a, err)
		}
	}
}

// try makes one request.
func (m *testVM) try(r request) (answer, error) {
	conn, err := dialAgent(&m.VM, time.Now().Add(host.Patience(10*time.Second)))
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return answer{}, err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Status != "ok" {
		return a, errors.New(a.Message)
	}
	return a, nil
}

// ask makes a request that must succeed.
func (m *testVM) ask(r request) answer {
	m.t.Helper()
	a, err := m.try(r)
	if err != nil {
		m.t.Fatalf("the guest on %v: %v", r, err)
	}
	return a
}

// pinged waits until the guest has answered two pings more of the supervisor's: when the second
// comes, the first has been answered.
func (m *testVM) pinged() {
	m.t.Helper()
	before := m.ask(request{Action: "pings"}).Pings
	for deadline := time.Now().Add(host.Patience(20 * time.Second)); m.ask(request{Action: "pings"}).Pings < before+2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatal("the supervisor does not ping the guest")
		}
	}
}

// ends waits until the supervisor has ended, with that status and that word in what it says.
func (m *testVM) ends(status int, want string) {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(host.Patience(20 * time.Second)):
		m.t.Fatal("the supervisor goes on")
	}
	if code := m.cmd.ProcessState.ExitCode(); code != status || !strings.Contains(m.output.String(), want) {
		m.t.Errorf("the supervisor ended with %d and said %q; want %d and %q", code, m.output, status, want)
	}
	m.nothingLeft()
}
