package native

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/runtime/onhost"
)

// maxHostDevices bounds the device nodes that a privileged container gets.
const maxHostDevices = 4096

// hostFacts reads what the OCI spec depends on. The devices are left out: see hostDevices.
func hostFacts() oci.HostFacts {
	facts := oci.HostFacts{Capabilities: []string{}, AppArmor: onhost.AppArmor()}
	for number, name := range oci.AllCapabilities() {
		// The bounding set: what this process's children can have.
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0); err == nil && has == 1 {
			facts.Capabilities = append(facts.Capabilities, name)
			if number == unix.CAP_SYS_RESOURCE {
				facts.LowerOOMScore = true
			}
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		facts.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	return facts
}

// hostDevices are the device nodes below dir (/dev), without those that every container has of its
// own. They come and go: read anew for each privileged container.
func hostDevices(dir string) []specs.LinuxDevice {
	var list []specs.LinuxDevice
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has just gone
		}
		relative := strings.TrimPrefix(path, dir+"/")
		if entry.IsDir() {
			switch relative {
			case "pts", "shm", "fd", "mqueue":
				return filepath.SkipDir
			}
			return nil
		}
		if relative == "console" || relative == "ptmx" || len(list) == maxHostDevices {
			return nil
		}
		if device, ok := deviceNode(path); ok {
			list = append(list, device)
		}
		return nil
	})
	return list
}

// deviceNode describes a device node; false for every other file.
func deviceNode(path string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, false
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, false
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, true
}
