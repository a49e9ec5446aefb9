package supervise

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/vsockinit"
	"github.com/magikrun/magikpod/tests/vm/vsockserve"
)

// The test binary is also the first process of the guests: one request a connection, one JSON
// object a line each way, as the agent does.

type request struct {
	Action string `json:"action"`
	Serial string `json:"serial,omitempty"` // tree, write: of the disk; share: the tag
	FSType string `json:"fstype,omitempty"`
	Path   string `json:"path,omitempty"`  // write
	Share  string `json:"share,omitempty"` // tree: of the image in a file, which is Serial
}

type answer struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Release string   `json:"release,omitempty"`
	Pings   int32    `json:"pings,omitempty"`
	Lines   []string `json:"lines,omitempty"`
}

func guestInit() {
	err := guestMain()
	fmt.Fprintln(os.Stderr, "init:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func guestMain() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := vsockinit.LoadModules("/modules"); err != nil {
		return err
	}
	return vsockserve.Serve(1024, sayReady, func(conn vsockserve.Conn) {
		if conn.Peer != unix.VMADDR_CID_HOST {
			conn.Close()
			return
		}
		go serve(conn.File)
	})
}

// sayReady reports to the host that this guest listens, as the agent does. A guest whose kernel has
// the parameter "mute" does not.
func sayReady() {
	line, _ := os.ReadFile("/proc/cmdline")
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil || strings.Contains(string(line), "mute") {
		return
	}
	_ = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 1025})
	unix.Close(fd)
}

func serve(f *os.File) {
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadBytes('\n')
	if err != nil {
		return
	}
	var r request
	var a answer
	if err = json.Unmarshal(line, &r); err == nil {
		a, err = handle(r)
	}
	a.Status = "ok"
	if err != nil {
		a = answer{Status: "error", Message: err.Error()}
	}
	_ = json.NewEncoder(f).Encode(a)
	if r.Action == "poweroff" && err == nil {
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

// pings counts the requests of that action: the supervisor's, and those that wait for the guest to
// answer.
var pings atomic.Int32

func handle(r request) (answer, error) {
	switch r.Action {
	case "ping":
		pings.Add(1)
		var u unix.Utsname
		err := unix.Uname(&u)
		return answer{Release: unix.ByteSliceToString(u.Release[:])}, err
	case "pings":
		return answer{Pings: pings.Load()}, nil
	case "poweroff":
		return answer{}, nil
	case "hang":
		time.Sleep(time.Hour)
	case "panic":
		return answer{}, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "disks":
		serials, err := guestDisks()
		var lines []string
		for serial := range serials {
			lines = append(lines, serial)
		}
		slices.Sort(lines)
		return answer{Lines: lines}, err
	case "tree":
		return tree(r)
	case "links":
		names, err := filepath.Glob("/sys/class/net/*/address")
		var lines []string
		for _, name := range names {
			address, _ := os.ReadFile(name)
			lines = append(lines, strings.TrimSpace(string(address)))
		}
		return answer{Lines: lines}, err
	case "write":
		dir, err := mounted(r)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, r.Path), []byte("written by the guest\n"), 0o644)
		}
		unix.Sync()
		return answer{}, err
	}
	return answer{}, fmt.Errorf("action %q", r.Action)
}

// guestDisks returns the block devices by serial number.
func guestDisks() (map[string]string, error) {
	files, err := filepath.Glob("/sys/block/*/serial")
	found := map[string]string{}
	for _, file := range files {
		serial, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		found[strings.TrimSpace(string(serial))] = "/dev/" + filepath.Base(filepath.Dir(file))
	}
	return found, err
}

// mounted mounts a disk or a share, once, waiting for the disk.
func mounted(r request) (string, error) {
	dir := "/mnt/" + r.Serial
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	source := r.Serial
	flags := uintptr(0)
	if r.Share != "" {
		share, err := mounted(request{Serial: r.Share, FSType: "virtiofs"})
		if err != nil {
			return "", err
		}
		source = filepath.Join(share, r.Serial)
	}
	for r.FSType != "virtiofs" && r.Share == "" {
		found, err := guestDisks()
		if err != nil {
			return "", err
		}
		if source = found[r.Serial]; source != "" {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if r.FSType == "erofs" {
		flags = unix.MS_RDONLY
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	err := unix.Mount(source, dir, r.FSType, flags, "")
	for tries := 0; errors.Is(err, unix.ENXIO) && tries < 100; tries++ {
		// Linux 6.1 shows a disk a moment before it can be opened.
		time.Sleep(5 * time.Millisecond)
		err = unix.Mount(source, dir, r.FSType, flags, "")
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("mount %s: %w", source, err), os.Remove(dir))
	}
	return dir, nil
}

// tree lists everything on a disk.
func tree(r request) (answer, error) {
	dir, err := mounted(r)
	if err != nil {
		return answer{}, err
	}
	lines, err := listTree(dir)
	return answer{Lines: lines}, err
}

// listTree describes each file below dir: name, mode, owner, time, size and content, link, device,
// extended attributes.
func listTree(dir string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(dir, path)
		what := ""
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			what = fmt.Sprintf("%d %s", len(data), hex.EncodeToString(sum[:6]))
		case info.Mode()&fs.ModeSymlink != 0:
			what, err = os.Readlink(path)
		case info.Mode()&fs.ModeDevice != 0:
			what = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%s %v %d:%d %d %s %s", name, info.Mode(), st.Uid, st.Gid, info.ModTime().Unix(), what, xattrs(path)))
		return nil
	})
	return lines, err
}

func xattrs(path string) string {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return ""
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return err.Error()
		}
		all = append(all, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
