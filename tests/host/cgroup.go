package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// systemdBooted says whether systemd is the build host's PID 1 (sd_booted(3)).
func systemdBooted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// cgroupRoot is the mount point of the build host's cgroup v2 hierarchy: the whole tree, or the
// unified part of a hybrid one.
func cgroupRoot() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the build host has no cgroup v2 hierarchy at /sys/fs/cgroup or /sys/fs/cgroup/unified (mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified)")
}

// cgroupFor is where the cgroup of the named host is: the scope that systemd-run makes, or a
// directory of our own.
func cgroupFor(name string) (string, error) {
	root, err := cgroupRoot()
	if err != nil {
		return "", err
	}
	if systemdBooted() {
		return filepath.Join(root, "system.slice", scopeName(name)), nil
	}
	return filepath.Join(root, name), nil
}

func scopeName(name string) string { return name + ".scope" }

// makeCgroup makes a cgroup at the top of the tree and gives it every controller that can be had:
// in a hybrid tree most are taken by v1.
func makeCgroup(dir string) error {
	available, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(available)) {
		// Refused where processes sit in the parent (not in the real root): the host then has fewer
		// controllers.
		_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+"+name), 0)
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// killCgroup kills every process at or below dir (cgroup.kill of Linux 5.14).
func killCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot kill the processes of the host: %w", err)
	}
	return nil
}

// removeCgroup removes dir and all cgroups below it, and in a hybrid tree what nspawn has made of
// the same name in systemd's own v1 hierarchy. Killed processes leave their cgroup some time after
// the signal, so it tries for a while.
func removeCgroup(dir string) error {
	var twin string
	if rel, ok := strings.CutPrefix(dir, "/sys/fs/cgroup/unified/"); ok {
		twin = filepath.Join("/sys/fs/cgroup/systemd", rel)
	}
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = removeCgroupOnce(dir); err == nil && twin != "" {
			err = removeCgroupOnce(twin)
		}
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("cannot remove cgroup %s: %w", dir, err)
}

func removeCgroupOnce(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = removeCgroupOnce(filepath.Join(dir, e.Name())) // its parent's removal fails then
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// findLeader finds the host's PID 1: systemd moves itself to init.scope below the payload cgroup
// that nspawn made. Processes that PID 1 has just forked may be there too; they have other PIDs in
// the innermost namespace.
func findLeader(cgroup string) (int, error) {
	data, err := os.ReadFile(filepath.Join(cgroup, "payload", "init.scope", "cgroup.procs"))
	if err != nil {
		return 0, fmt.Errorf("cannot find PID 1 of the host: %w", err)
	}
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err == nil && isInit(pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("cannot find PID 1 of the host: it is not among the processes %q of its init.scope", strings.Fields(string(data)))
}

// isInit says whether pid is PID 1 of a PID namespace below this one (the NSpid line of
// proc_pid_status(5)).
func isInit(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			pids := strings.Fields(rest)
			return len(pids) > 1 && pids[len(pids)-1] == "1"
		}
	}
	return false
}
