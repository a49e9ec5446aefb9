// Package nsfile opens namespaces by their paths in /proc, and notices when the process that kept
// one is gone.
package nsfile

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrGone marks a failure for which who wants the namespace is not to blame: its holder has died.
var ErrGone = errors.New("its holder is gone")

// Owner names a process whose /proc/PID paths stand in a configuration.
type Owner struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat (proc_pid_stat(5)): clock ticks since boot. With it a
	// reused PID is noticed. 0: not checked.
	StartTime uint64 `json:"startTime"`
}

// Open opens a namespace file and returns its descriptor. ErrGone: its holder does not exist any
// more, or is another process by now. The owner is checked when path lies below its directory in
// /proc.
func Open(path string, owner Owner) (int, error) {
	if owner.PID > 0 && owner.StartTime > 0 && strings.HasPrefix(path, "/proc/"+strconv.Itoa(owner.PID)+"/") {
		if start, err := StartTime(owner.PID); err != nil || start != owner.StartTime {
			return -1, fmt.Errorf("%s: %w", path, ErrGone)
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return -1, fmt.Errorf("%s: %w", path, ErrGone)
	case err != nil:
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	// Checked after opening: in between /proc/PID/fd/N may have become something else.
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is no namespace: %w", path, ErrGone)
	}
	return fd, nil
}

// StartTime is the start time of a process in clock ticks since boot (proc_pid_stat(5), field 22),
// which with the PID names it for good.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command's name, field 2, may contain blanks and parentheses: count from the last one.
	_, rest, ok := strings.Cut(string(data[max(strings.LastIndexByte(string(data), ')'), 0):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("cannot parse /proc/%d/stat", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Self is this process. 0 as the start time, when it cannot be read, is not checked.
func Self() Owner {
	start, _ := StartTime(os.Getpid())
	return Owner{PID: os.Getpid(), StartTime: start}
}

// Path names a namespace that this process has open for other processes; empty for nil.
func Path(f *os.File) string {
	if f == nil {
		return ""
	}
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
}

// Dup duplicates f, close-on-exec. A nil f stays nil.
func Dup(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
