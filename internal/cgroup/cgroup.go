// Package cgroup reads and writes the files of cgroups of version 2 (cgroup-v2.rst, Core Interface Files).
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

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

// Gone says whether an error of a file of a cgroup, or of a process in /proc, means that there is no such cgroup or process any more.
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

// SetFrozen freezes or thaws a cgroup; its processes follow some time later, and the event "frozen" tells. One that is gone is no error.
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
	if err := os.WriteFile(dir+"/"+file, []byte(value), 0); !Gone(err) {
		return err
	}
	return nil
}
