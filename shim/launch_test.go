package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/nsfile"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the tests with sudo")
	}
}

// podNamespace makes what the daemon makes for a pod: a mount namespace on a locked, thrown-away
// thread, open as a descriptor. A tmpfs is mounted in it at dir, because the layers' overlay must
// not lie on another overlay.
func podNamespace(t *testing.T, dir string) (path string) {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "")
		}
		fd := -1
		if err == nil {
			for _, sub := range []string{"layers/1", "layers/2", "volume"} {
				err = errors.Join(err, os.MkdirAll(filepath.Join(dir, sub), 0o755))
			}
			err = errors.Join(err, os.WriteFile(dir+"/layers/1/file", []byte("lower"), 0o644), os.WriteFile(dir+"/layers/2/file", []byte("upper"), 0o644))
			if err == nil {
				fd, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			}
		}
		made <- result{fd, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { unix.Close(r.fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.fd)
}

func writeConfig(t *testing.T, config any) string {
	t.Helper()
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func runLaunch(t *testing.T, config LaunchConfig) (output string, status int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", writeConfig(t, config))
	cmd.Env = append(os.Environ(), asAgent+"=launch", "SECRET=leaked")
	// A descriptor that a careless parent left open.
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.ExtraFiles = []*os.File{f, f}
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func launchConfig(t *testing.T, dir string, argv ...string) LaunchConfig {
	t.Helper()
	start, err := nsfile.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return LaunchConfig{
		Owner:   Owner{PID: os.Getpid(), StartTime: start},
		MountNS: podNamespace(t, dir),
		Rootfs:  OverlayConfig{LayersDir: dir + "/layers", Lower: []string{"1", "2"}, Upper: dir + "/upper", Work: dir + "/work", Target: dir + "/rootfs"},
		Argv:    argv,
		Env:     []string{"PATH=/usr/bin:/bin"},
		Log:     filepath.Join(t.TempDir(), "runtime.log"),
	}
}

// TestLaunchMounts looks at the mounts, the descriptors and the environment from where the OCI
// runtime would be.
func TestLaunchMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	script := `cat rootfs/file; echo; echo new > rootfs/file; cat upper/file
		echo x > mnt/0/made; ls volume/a/b; touch mnt/1/no 2>&1 | grep -o 'Read-only file system'; ls /proc/self/fd | wc -l; env | sort | tr '\n' ' '; cat /proc/self/mountinfo | grep -c ' shared:'; stat -c %a rootfs`
	config := launchConfig(t, dir, "/bin/sh", "-c", "cd "+dir+"; "+script)
	config.Binds = []Bind{
		{Source: dir + "/volume", SubPath: "a/b", Target: dir + "/mnt/0"},
		{Source: dir + "/volume", Target: dir + "/mnt/1", ReadOnly: true},
		{Source: dir + "/layers/1/file", Target: dir + "/mnt/2"},
	}
	got, status := runLaunch(t, config)
	// Four descriptors: 0, 1, 2, and that of ls for the directory.
	want := "upper\nnew\nmade\nRead-only file system\n4\nPATH=/usr/bin:/bin PWD=" + dir + " 0\n755\n"
	got = strings.ReplaceAll(got, "OLDPWD=/ ", "")
	if status != 0 || got != want {
		t.Errorf("status %d, output\n%s\nwant\n%s", status, got, want)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount shows on the host (%v)", err)
	}
}

// TestLaunchEscape checks that a container which owns a volume cannot lead a subPath out of it.
func TestLaunchEscape(t *testing.T) {
	needRoot(t)
	dir, outside := t.TempDir(), t.TempDir()
	volume := t.TempDir()
	for link, target := range map[string]string{"abs": outside, "rel": "../../../../../../../" + outside, "proc": "/proc/self/root" + outside} {
		if err := os.Symlink(target, filepath.Join(volume, link)); err != nil {
			t.Fatal(err)
		}
		config := launchConfig(t, dir, "/bin/sh", "-c", "touch "+dir+"/mnt/0/escaped")
		config.Binds = []Bind{{Source: volume, SubPath: link + "/sub", Target: dir + "/mnt/0"}}
		output, _ := runLaunch(t, config)
		if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
			t.Errorf("%s led out of the volume: %v %v\n%s", link, entries, err, output)
		}
	}
	config := launchConfig(t, dir, "/bin/true")
	config.Binds = []Bind{{Source: volume, SubPath: "x/../../y", Target: dir + "/mnt/0"}}
	if output, status := runLaunch(t, config); status != ExitFailure || !strings.Contains(output, "contains ..") {
		t.Errorf("status %d, %q", status, output)
	}
}

func TestLaunchFailures(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, tc := range []struct {
		name   string
		break_ func(c *LaunchConfig)
		status int
		want   string
	}{
		{"namespace gone", func(c *LaunchConfig) { c.MountNS = "/proc/999999999/fd/3" }, ExitTempFail, "magikshim launch: cannot open the pod's mount namespace: /proc/999999999/fd/3: its holder is gone"},
		{"holder replaced", func(c *LaunchConfig) { c.Owner.StartTime++ }, ExitTempFail, "its holder is gone"},
		{"descriptor reused", func(c *LaunchConfig) { c.MountNS = fmt.Sprintf("/proc/%d/fd/0", os.Getpid()) }, ExitTempFail, "is no namespace"},
		{"no OCI runtime", func(c *LaunchConfig) { c.Argv = []string{"/nonexistent/crun"} }, ExitFailure, "cannot execute the OCI runtime /nonexistent/crun"},
		{"relative OCI runtime", func(c *LaunchConfig) { c.Argv = []string{"crun"} }, ExitFailure, "not absolute"},
		{"no volume", func(c *LaunchConfig) { c.Binds = []Bind{{Source: dir + "/none", Target: dir + "/mnt/0"}} }, ExitFailure, "cannot bind " + dir + "/none"},
		{"no layer", func(c *LaunchConfig) { c.Rootfs.Lower = []string{"9"} }, ExitFailure, "cannot mount root file system of 1 layers"},
		{"injection", func(c *LaunchConfig) { c.Rootfs.Lower = []string{"1,upperdir=/etc"} }, ExitFailure, "cannot be used in mount options"},
		{"too long", func(c *LaunchConfig) { c.Rootfs.Lower = strings.Split(strings.Repeat("1 ", 2100)+"2", " ") }, ExitFailure, "and the kernel takes 4095"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := launchConfig(t, dir, "/bin/true")
			tc.break_(&config)
			output, status := runLaunch(t, config)
			if status != tc.status || !strings.Contains(output, tc.want) || strings.Count(output, "\n") != 1 {
				t.Errorf("status %d, want %d; output %q, want %q in one line", status, tc.status, output, tc.want)
			}
			data, err := os.ReadFile(config.Log)
			var entry struct {
				Msg, Level string
				Time       time.Time
			}
			if err == nil {
				err = json.Unmarshal(data, &entry)
			}
			if err != nil || entry.Msg+"\n" != output || entry.Level != "error" || entry.Time.IsZero() {
				t.Errorf("log %q: %v", data, err)
			}
		})
	}
}

// TestPauseNamespaces checks that pause keeps the namespaces, announces itself, has a PID namespace
// that reaps, and ends on its signal.
func TestPauseNamespaces(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	config := PauseConfig{MountNS: podNamespace(t, t.TempDir()), FIFODir: dir, SharePID: true, PIDFile: filepath.Join(t.TempDir(), "pidns.pid")}
	notify := listenJournal(t, filepath.Join(dir, "notify"))
	cmd := exec.Command("/proc/self/exe", writeConfig(t, config))
	cmd.Env = append(os.Environ(), asAgent+"=pause", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if got := notify.next(t); got["READY"] != "1" {
		t.Fatalf("notified %v", got)
	}
	held, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	own, _ := os.Readlink("/proc/self/ns/mnt")
	pod, _ := os.Readlink(config.MountNS)
	if err != nil || held != pod || held == own {
		t.Errorf("pause is in %s, want %s (%v)", held, pod, err)
	}
	data, err := os.ReadFile(config.PIDFile)
	if err != nil {
		t.Fatal(err)
	}
	first := strings.TrimSpace(string(data))
	// An orphan in the namespace must be reaped by its first process: nsenter's child leaves a
	// child of its own behind.
	out, err := exec.Command("nsenter", "-t", first, "-p", "sh", "-c", "(sleep 0.05 & echo $! )").CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter: %v %s", err, out)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		children, err := os.ReadFile("/proc/" + first + "/task/" + first + "/children")
		if err == nil && len(strings.TrimSpace(string(children))) == 0 {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Errorf("the namespace's first process has children %q (%v)", children, err)
			break
		}
	}
	begin := time.Now()
	cmd.Process.Signal(StopSignal)
	if err := cmd.Wait(); err != nil || time.Since(begin) > 1900*time.Millisecond { // the drain of open pipes would take 2 s
		t.Errorf("stopped after %s: %v", time.Since(begin), err)
	}
	if _, err := os.Stat("/proc/" + first); err == nil {
		t.Error("the namespace's first process outlives pause")
	}
}
