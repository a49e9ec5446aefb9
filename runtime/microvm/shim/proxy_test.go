package shim

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/tests/host"
)

// unit is a proxy as systemd runs it.
type unit struct {
	cmd      *exec.Cmd
	log      string
	mu       sync.Mutex
	notified []string
	stdout   bytes.Buffer
	stderr   bytes.Buffer
}

// Write collects the output.
func (u *unit) Write(data []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stdout.Write(data)
}

func (u *unit) output() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stdout.String()
}

func (u *unit) messages() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return strings.Join(u.notified, "|")
}

func startUnit(t *testing.T, config Config, prefix ...string) *unit {
	t.Helper()
	dir := t.TempDir()
	u := &unit{log: filepath.Join(dir, "log")}
	config.Log = u.log
	data, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(dir+"/config", data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Short, for a socket's path.
	short, err := os.MkdirTemp("", "proxy")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: short + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		buffer := make([]byte, 4096)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			u.mu.Lock()
			u.notified = append(u.notified, string(buffer[:n]))
			u.mu.Unlock()
		}
	}()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(prefix, program)
	u.cmd = exec.Command(argv[0], argv[1:]...)
	u.cmd.Env = append(os.Environ(), asProxy+"="+dir+"/config", "NOTIFY_SOCKET="+short+"/notify")
	u.cmd.Stdout, u.cmd.Stderr = u, &u.stderr
	u.cmd.WaitDelay = time.Second
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill()
		_ = u.cmd.Wait()
		conn.Close()
		<-listening
		os.RemoveAll(short)
	})
	return u
}

// end waits for the proxy's end.
func (u *unit) end(t *testing.T) syscall.WaitStatus {
	t.Helper()
	timer := time.AfterFunc(host.Patience(30*time.Second), func() { _ = u.cmd.Process.Kill() })
	defer timer.Stop()
	_ = u.cmd.Wait()
	return u.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

var eventually = testutil.Eventually

// withMessage adds a file for the termination message to the spec.
func withMessage(t *testing.T, request *wire.Create, path string) {
	t.Helper()
	var spec map[string]any
	if err := json.Unmarshal(request.Spec, &spec); err != nil {
		t.Fatal(err)
	}
	spec["mounts"] = append(spec["mounts"].([]any), map[string]any{
		"destination": path, "type": "bind", "source": wire.MountSource(len(request.Mounts)), "options": []string{"rbind", "rw"},
	})
	request.Mounts = append(request.Mounts, wire.Mount{Kind: wire.MountMessage})
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	request.Spec = data
}

const started = "READY=1\nSTATUS=" + shim.StatusStarted

// TestEnds: the proxy ends as its container.
func TestEnds(t *testing.T) {
	m := guesttest.Start(t)
	for _, tc := range []struct {
		name, script string
		signal       syscall.Signal // sent to the proxy when the container says ready
		code         int
		killed       syscall.Signal
	}{
		{"zero", "echo ready", 0, 0, 0},
		{"code", "echo ready; exit 42", 0, 42, 0},
		{"asked to end", "trap 'exit 3' TERM; echo ready; while true; do sleep 0.05; done", syscall.SIGTERM, 3, 0},
		{"another signal", "trap 'exit 4' USR2; echo ready; while true; do sleep 0.05; done", syscall.SIGUSR2, 4, 0},
		{"real-time signal", "trap 'exit 5' 37; echo ready; while true; do sleep 0.05; done", 37, 5, 0},
		{"first real-time signal", "trap 'exit 7' 34; echo ready; while true; do sleep 0.05; done", 34, 7, 0},
		{"last real-time signal", "trap 'exit 8' 64; echo ready; while true; do sleep 0.05; done", 64, 8, 0},
		{"signal of ended children", "trap 'exit 9' CHLD; echo ready; while true; do :; done", syscall.SIGCHLD, 9, 0},
		// The signal is the first process's default; it is not PID 1 of its namespace but a child
		// that it waits for, whose end the shell reports.
		{"signal that Go would panic on", "trap 'exit 6' SEGV; echo ready; while true; do sleep 0.05; done", syscall.SIGSEGV, 6, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			message := filepath.Join(t.TempDir(), "message")
			if err := os.WriteFile(message, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", "echo last words > /dev/message; echo to stderr >&2; "+tc.script)
			withMessage(t, &request, "/dev/message")
			u := startUnit(t, Config{Agent: client.Address{Path: m.Hybrid}, Create: request, MessageFile: message})
			eventually(t, "ready", func() bool { return u.output() == "ready\n" })
			if tc.signal != 0 {
				eventually(t, "notified", func() bool { return u.messages() == started })
				if err := u.cmd.Process.Signal(tc.signal); err != nil {
					t.Fatal(err)
				}
			}
			status := u.end(t)
			if status.ExitStatus() != tc.code || u.messages() != started || !strings.HasPrefix(u.stderr.String(), "to stderr\n") {
				t.Errorf("status %#x, notified %q, stderr %q", status, u.messages(), u.stderr.String())
			}
			if data, err := os.ReadFile(message); err != nil || string(data) != "last words\n" {
				t.Errorf("message %q %v", data, err)
			}
		})
	}
}

// TestKilled: a container that a signal kills kills the proxy, by the same signal and without a core.
func TestKilled(t *testing.T) {
	m := guesttest.Start(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL} {
		u := startUnit(t, Config{Agent: client.Address{Path: m.Hybrid}, Create: guesttest.Container(t, "a", nil, "/bin/sleep", "1000")})
		eventually(t, "notified", func() bool { return u.messages() == started })
		if err := m.Signal(t.Context(), "a", "", sig); err != nil {
			t.Fatal(err)
		}
		if status := u.end(t); !status.Signaled() || status.Signal() != sig || status.CoreDump() {
			t.Errorf("status %#x after signal %d: %s", status, sig, u.stderr.String())
		}
	}
	// The proxy is killed: so is the container.
	u := startUnit(t, Config{Agent: client.Address{Path: m.Hybrid}, Create: guesttest.Container(t, "a", nil, "/bin/sleep", "1000")})
	eventually(t, "notified", func() bool { return u.messages() == started })
	if err := u.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removed", func() bool { return m.Containers(t) == "" })
}

// TestNotDumpable: root of a container with hostPID, which has more capabilities than the proxy,
// does not get the host's file system by it.
func TestNotDumpable(t *testing.T) {
	m := guesttest.Start(t)
	config := Config{Agent: client.Address{Path: m.Hybrid}, Create: guesttest.Container(t, "a", nil, "/bin/sleep", "1000")}
	u := startUnit(t, config, "setpriv", "--bounding-set=-all,+dac_override", "--inh-caps=-all")
	eventually(t, "notified", func() bool { return u.messages() == started })
	other := exec.Command("setpriv", "--bounding-set=-all,+dac_override", "--inh-caps=-all", "sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	look := func(pid int) error {
		return exec.Command("setpriv", "--bounding-set=-all,+dac_override,+chown", "--inh-caps=-all", "ls", "/proc/"+itoa(pid)+"/root/").Run()
	}
	eventually(t, "another process can be looked into", func() bool { return look(other.Process.Pid) == nil })
	if look(u.cmd.Process.Pid) == nil {
		t.Error("the proxy can be looked into")
	}
}

// TestDie ends processes by each signal that may kill a container.
func TestDie(t *testing.T) {
	if sig := os.Getenv("MAGIKPROXY_DIE"); sig != "" {
		die(unix.SignalNum(sig))
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGSYS, syscall.SIGPIPE, syscall.SIGKILL} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestDie$")
		cmd.Env = append(os.Environ(), "MAGIKPROXY_DIE="+unix.SignalName(sig))
		cmd.Dir = t.TempDir()
		_ = cmd.Run()
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != sig || status.CoreDump() {
			t.Errorf("%v: status %#x", sig, status)
		}
	}
}

// TestNotStarted: the reason is reported where native looks for it, and the exit status says who is
// to blame.
func TestNotStarted(t *testing.T) {
	m := guesttest.Start(t)
	ok := guesttest.Container(t, "a", nil, "/bin/true")
	bad := guesttest.Container(t, "a", nil, "/bin/none")
	for _, tc := range []struct {
		name   string
		config Config
		code   int
		want   string
	}{
		{"no VM", Config{Agent: client.Address{Path: "/nonexistent"}, Create: ok, Timeout: 300}, shim.ExitTempFail, "has not come up in time"},
		{"no command", Config{Agent: client.Address{Path: m.Hybrid}, Create: bad}, shim.ExitFailure, "/bin/none"},
		{"no volume", Config{Agent: client.Address{Path: m.Hybrid}, Create: ok, Copies: []Copy{{"v", "/nonexistent"}}}, shim.ExitFailure, "/nonexistent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := startUnit(t, tc.config)
			status := u.end(t)
			var entry struct{ Msg, Level string }
			data, err := os.ReadFile(u.log)
			if err == nil {
				err = json.Unmarshal(data, &entry)
			}
			if err != nil || status.ExitStatus() != tc.code || u.messages() != "" || entry.Level != "error" || !strings.Contains(entry.Msg, tc.want) {
				t.Errorf("%v: status %#x, notified %q, log %q", err, status, u.messages(), data)
			}
		})
	}
}

// TestVMDies: the container of a VM that dies is killed with it.
func TestVMDies(t *testing.T) {
	m := guesttest.Start(t)
	u := startUnit(t, Config{Agent: client.Address{Path: m.Hybrid}, Create: guesttest.Container(t, "a", nil, "/bin/sleep", "1000")})
	eventually(t, "notified", func() bool { return u.messages() == started })
	begin := time.Now()
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := u.end(t); !status.Signaled() || status.Signal() != syscall.SIGKILL || time.Since(begin) > host.Patience(5*time.Second) {
		t.Errorf("status %#x after %s", status, time.Since(begin))
	}
}

// TestBackPressure: output that nobody takes stops the container, and costs the proxy nothing.
func TestBackPressure(t *testing.T) {
	m := guesttest.Start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	config := Config{Agent: client.Address{Path: m.Hybrid}, Create: guesttest.Container(t, "a", nil, "/bin/sh", "-c", "yes | head -c 50000000; echo done >&2")}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Dir(m.Socket) + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd.Env, cmd.Stdout = append(os.Environ(), asProxy+"="+path, "NOTIFY_SOCKET="+filepath.Dir(m.Socket)+"/notify"), w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	time.Sleep(time.Second)
	status, err := os.ReadFile("/proc/" + itoa(cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			t.Logf("anonymous memory while it waits: %s", strings.TrimSpace(kib))
			if n := number(kib); n > 16<<10 && !raceDetector {
				t.Errorf("%d KiB", n)
			}
		}
	}
	total := 0
	for buffer := make([]byte, 1<<16); ; {
		n, err := r.Read(buffer)
		total += n
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil || total != 50000000 {
		t.Errorf("%d bytes, %v", total, err)
	}
}
