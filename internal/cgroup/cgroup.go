// Package cgroup reads and writes the files of cgroups of version 2 (cgroup-v2.rst, Core Interface
// Files), for the host and for the agent in a VM.
//
// Layer: none.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Root is where they are mounted.
var Root = sync.OnceValue(func() string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		return root + "/unified" // a hybrid host
	}
	return root
})

// Gone says whether an error of a file of a cgroup, or of a process in /proc, means that there is
// no such cgroup or process any more.
func Gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH)
}

// Event is a value of cgroup.events; empty when the cgroup is gone.
func Event(dir, name string) (string, error) {
	data, err := os.ReadFile(dir + "/cgroup.events")
	if err != nil {
		if Gone(err) {
			return "", nil
		}
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return value, nil
		}
	}
	return "", fmt.Errorf("%s/cgroup.events does not have %s", dir, name)
}

// SetFrozen freezes or thaws a cgroup; its processes follow some time later, and the event "frozen"
// says so. One that is gone is no error.
func SetFrozen(dir string, frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	return write(dir, "cgroup.freeze", value)
}

// Kill sends SIGKILL to all processes of a cgroup. One that is gone is no error.
func Kill(dir string) error { return write(dir, "cgroup.kill", "1") }

func write(dir, file, value string) error {
	if err := Write(dir, file, value); !Gone(err) {
		return err
	}
	return nil
}

// Write writes to a file of a cgroup; only the kernel makes one.
func Write(dir, file, value string) error {
	f, err := os.OpenFile(dir+"/"+file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Processes are those of a cgroup, without those of the cgroups below it.
func Processes(dir string) (pids []int, err error) {
	data, err := os.ReadFile(dir + "/cgroup.procs")
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// Remove removes a cgroup and those below it. One that is gone is no error; EBUSY: it has processes.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := Remove(dir + "/" + entry.Name()); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot remove the cgroup %s: %w", dir, err)
	}
	return nil
}

// RemoveWithin is [Remove] of a cgroup whose processes have been killed: it waits until they are
// gone, for at most limit, or until done is closed.
func RemoveWithin(dir string, limit time.Duration, done <-chan struct{}) error {
	for deadline, pause := time.Now().Add(limit), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := Remove(dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-done:
			return err
		}
	}
}
