package shim

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fakeManager is a service manager's notify socket that writes down what it gets and answers
// barriers after onBarrier.
type fakeManager struct {
	path  string
	conn  *net.UnixConn
	got   chan string
	noted string // a file that gets a line for each notification, for the order among what others note
}

func listenManager(t *testing.T, noted string, onBarrier func()) *fakeManager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &fakeManager{path: path, conn: conn, got: make(chan string, 100), noted: noted}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			data, oob := make([]byte, 4096), make([]byte, 256)
			n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
			if err != nil {
				close(m.got)
				return
			}
			text := strings.ReplaceAll(string(data[:n]), "\n", ",")
			note(t, noted, text)
			m.got <- text
			if oobn > 0 {
				onBarrier()
				note(t, noted, "barrier over")
				messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
				fds, _ := unix.ParseUnixRights(&messages[0])
				unix.Close(fds[0])
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return m
}

func note(t *testing.T, path, line string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(line + "\n")
		f.Close()
	}
	if err != nil {
		t.Error(err)
	}
}

// all returns the notifications, after launch has ended.
func (m *fakeManager) all() []string {
	m.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var list []string
	for text := range m.got {
		list = append(list, text)
	}
	return list
}

// fakeRuntime is a shell script with crun's behaviour as far as launch knows it. What it does is
// written to noted.
func fakeRuntime(t *testing.T, noted, onCreate, onStart string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "crun")
	script := `#!/bin/sh
case $1 in
create)
	echo "create NOTIFY_SOCKET=$NOTIFY_SOCKET" >> ` + noted + `
	` + onCreate + `
	(echo x; exec sleep 1000) & echo $! > $2;;
start) echo start >> ` + noted + `; ` + onStart + `;;
esac
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// runStart runs launch with a manager, and returns how it ended.
func runStart(t *testing.T, config LaunchConfig, m *fakeManager) (output string, status int) {
	t.Helper()
	return runStartTo(t, config, m, filepath.Join(t.TempDir(), "output"))
}

// runStartTo is runStart with the output in the file log, where the container's goes on after
// launch has ended.
func runStartTo(t *testing.T, config LaunchConfig, m *fakeManager, log string) (output string, status int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", writeConfig(t, config))
	cmd.Env = append(os.Environ(), asAgent+"=launch")
	if m != nil {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path)
	}
	// A file: the container's processes hold it for longer than launch lives.
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), cmd.ProcessState.ExitCode()
}

// killFirst ends the container that launch has left running.
func killFirst(t *testing.T, pidFile string) {
	data, err := os.ReadFile(pidFile)
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(data)))
	if err == nil && convErr == nil && pid > 1 {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// announced is the PID in a first notification.
func announced(text string) string {
	pid, _, _ := strings.Cut(strings.TrimPrefix(text, "MAINPID="), ",")
	return pid
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

// waitForComm waits until a process has executed the program of that name.
func waitForComm(t *testing.T, pid, name string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if strings.TrimSpace(string(comm)) == name {
			return
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("process %s is %q, not %s: %v", pid, comm, name, err)
		}
	}
}

func TestLaunchStart(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	noted := filepath.Join(t.TempDir(), "noted")
	m := listenManager(t, noted, func() { time.Sleep(200 * time.Millisecond) })
	mount := `echo "$CLONED $(test -w $0; echo $?)" >> ` + noted
	oci := fakeRuntime(t, noted, mount, mount)
	config := launchConfig(t, dir, oci, "create", filepath.Join(t.TempDir(), "pid"))
	config.Start, config.PIDFile, config.Cloned = []string{oci, "start"}, config.Argv[2], "CLONED=yes"
	t.Cleanup(func() { killFirst(t, config.PIDFile) })
	if output, status := runStart(t, config, m); status != 0 || output != "x\n" {
		t.Fatalf("status %d, output %q", status, output)
	}
	pid, err := os.ReadFile(config.PIDFile)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"MAINPID=" + strings.TrimSpace(string(pid)) + ",READY=1,STATUS=created", "BARRIER=1", "STATUS=started"}
	if got := m.all(); !slices.Equal(got, want) {
		t.Errorf("notified %q, want %q", got, want)
	}
	data, err := os.ReadFile(noted)
	readOnly := "yes 1\n" // from a mount that nobody can write to
	wantNoted := "create NOTIFY_SOCKET=\n" + readOnly + want[0] + "\nBARRIER=1\nbarrier over\nstart\n" + readOnly + want[2] + "\n"
	if err != nil || string(data) != wantNoted {
		t.Errorf("happened\n%s\nwant\n%s", data, wantNoted)
	}
}

func TestLaunchStartFailures(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name              string
		onCreate, onStart string
		status            int
		notified          int
		want              string // in the output
	}{
		{"create fails", "echo no; exit 3", "", 3, 0, "no\n"},
		{"create is killed", "kill -9 $$", "", 1, 0, ""},
		{"no PID file", "exit 0", "", 1, 0, "cannot read the PID file of the OCI runtime"},
		{"bad PID file", "echo 1 > $2; exit 0", "", 1, 0, `cannot parse the PID file of the OCI runtime: "1\n"`},
		{"process gone", "echo 4194000 > $2; exit 0", "", 1, 0, "cannot open the container's first process"},
		{"start fails", "", "exit 4", 4, 3, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noted := filepath.Join(t.TempDir(), "noted")
			m := listenManager(t, noted, func() {})
			oci := fakeRuntime(t, noted, tc.onCreate, tc.onStart)
			config := launchConfig(t, t.TempDir(), oci, "create", filepath.Join(t.TempDir(), "pid"))
			config.Start, config.PIDFile = []string{oci, "start"}, config.Argv[2]
			t.Cleanup(func() { killFirst(t, config.PIDFile) })
			output, status := runStart(t, config, m)
			got := m.all()
			if status != tc.status || len(got) != tc.notified || !strings.Contains(output, tc.want) {
				t.Errorf("status %d, notified %q, output %q", status, got, output)
			}
			if len(got) == 0 {
				return
			}
			if got[2] != "STATUS=not started" {
				t.Errorf("notified %q", got)
			}
			// What was created and cannot be started must not stay.
			pid, err := strconv.Atoi(announced(got[0]))
			for deadline := time.Now().Add(10 * time.Second); err == nil && alive(pid); time.Sleep(10 * time.Millisecond) {
				if state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(state), ") Z ") {
					break // this host's PID 1 takes its time
				}
				if time.Now().After(deadline) {
					err = fmt.Errorf("process %d still runs", pid)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("holder dies in create", func(t *testing.T) {
		config := launchConfig(t, t.TempDir())
		holder := exec.Command("nsenter", "--mount="+config.MountNS, "sleep", "1000")
		if err := holder.Start(); err != nil {
			t.Fatal(err)
		}
		pid := strconv.Itoa(holder.Process.Pid)
		go func() { _ = holder.Wait() }() // else it would be a zombie, which still is something
		waitForComm(t, pid, "sleep")
		noted := filepath.Join(t.TempDir(), "noted")
		oci := fakeRuntime(t, noted, "kill -9 "+pid+"; while test -e /proc/"+pid+"; do sleep 0.01; done; exit 1", "")
		config.PIDFile = filepath.Join(t.TempDir(), "pid")
		config.Argv, config.Start = []string{oci, "create", config.PIDFile}, []string{oci, "start"}
		config.MountNS = "/proc/" + pid + "/ns/mnt"
		if output, status := runStart(t, config, listenManager(t, noted, func() {})); status != ExitTempFail || !strings.Contains(output, "its holder is gone") {
			t.Errorf("status %d, output %q", status, output)
		}
	})
	t.Run("no manager", func(t *testing.T) {
		config := launchConfig(t, t.TempDir(), "/bin/true")
		config.Start, config.PIDFile = []string{"/bin/true"}, "/nonexistent/pid"
		if output, status := runStart(t, config, nil); status != ExitFailure || !strings.Contains(output, "NOTIFY_SOCKET is not set") {
			t.Errorf("status %d, output %q", status, output)
		}
	})
}

// TestLaunchStartCrun creates and starts a container with the real OCI runtime: it ends at once,
// and nothing that it wrote is lost.
func TestLaunchStartCrun(t *testing.T) {
	needRoot(t)
	crun, err := exec.LookPath("crun")
	if err != nil {
		t.Skip("needs crun: apt-get install crun")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox: apt-get install busybox-static")
	}
	dir, bundle, root := t.TempDir(), t.TempDir(), t.TempDir()
	id := fmt.Sprintf("magikpod-test-%d", os.Getpid())
	spec := specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: dir + "/rootfs"},
		Process: &specs.Process{Args: []string{"/bin/busybox", "sh", "-c", "echo out; echo err >&2; exit 7"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}},
	}
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(bundle+"/config.json", data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	// crun refuses a host with both versions of cgroups, so it is shown only the second, in the
	// mount namespace that is the container's anyway.
	onV2 := []string{"/bin/sh", "-c", `mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"`, "sh", crun, "--root=" + root, "--cgroup-manager=disabled"}
	config := launchConfig(t, dir, append(slices.Clone(onV2), "create", "--bundle="+bundle, "--pid-file="+bundle+"/pid", id)...)
	config.Binds = []Bind{{Source: busybox, Target: dir + "/rootfs/bin/busybox"}}
	config.Start, config.PIDFile = []string{crun, "--root=" + root, "--cgroup-manager=disabled", "start", id}, bundle+"/pid"
	m := listenManager(t, filepath.Join(t.TempDir(), "noted"), func() {})
	t.Cleanup(func() {
		if out, err := exec.Command("unshare", slices.Concat([]string{"--mount"}, onV2, []string{"delete", "--force", id})...).CombinedOutput(); err != nil {
			t.Errorf("crun delete: %v: %s", err, out)
		}
	})
	// The container's first process is ours to collect, as it is systemd's in a unit.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	log := filepath.Join(t.TempDir(), "output")
	output, status := runStartTo(t, config, m, log)
	got := m.all()
	if status != 0 || len(got) != 3 || got[2] != "STATUS=started" {
		t.Fatalf("status %d, notified %q, output %q", status, got, output)
	}
	pid, err := strconv.Atoi(announced(got[0]))
	if err != nil {
		t.Fatal(err)
	}
	var how unix.WaitStatus
	if _, err := unix.Wait4(pid, &how, 0, nil); err != nil || how.ExitStatus() != 7 {
		t.Errorf("the container's exit status is %d, want 7 (%v)", how.ExitStatus(), err)
	}
	// launch may have returned before the container wrote; the container has ended now.
	if data, err := os.ReadFile(log); err != nil || string(data) != "out\nerr\n" {
		t.Errorf("output %q, %v", data, err)
	}
}
