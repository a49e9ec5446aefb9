package crun

import (
	"errors"
	"os"
	"strings"
)

// SetSysctl sets a kernel parameter of this thread's namespaces (sysctl(8)). The parts of its name
// are separated by dots, or, if one of them has a dot in it, by slashes.
func SetSysctl(name, value string) error {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	f, err := os.OpenFile("/proc/sys/"+name, os.O_WRONLY, 0) // only the kernel makes one
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
