//go:build linux

package jail

import (
	"fmt"
	"os"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/confine"
)

// guestCalls are the system calls that a process still needs when all that is left to do is to run
// a guest: those of Go's runtime, of its files and sockets, and of WASI. Names that an architecture
// does not have are left out there. No program is executed, no other process is made, traced or
// signalled, nothing is mounted, no connection is made.
var guestCalls = []string{
	// memory and threads
	"brk", "mmap", "munmap", "mprotect", "mremap", "madvise", "mincore", "membarrier", "futex", "rseq", "sched_yield", "sched_getaffinity",
	"set_robust_list", "restart_syscall", "exit", "exit_group",
	// itself
	"getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getrlimit", "uname", "getrandom",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
	// time
	"clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time",
	// files
	"read", "readv", "pread64", "preadv", "write", "writev", "pwrite64", "pwritev", "close", "lseek", "fcntl", "dup", "dup3",
	"open", "openat", "openat2", "stat", "lstat", "fstat", "newfstatat", "fstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2",
	"getdents64", "getcwd", "readlink", "readlinkat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2",
	"link", "linkat", "symlink", "symlinkat", "truncate", "ftruncate", "fallocate", "fadvise64", "fsync", "fdatasync", "utimensat",
	// sockets: the listeners, and what they accept
	"socket", "bind", "listen", "accept", "accept4", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt",
	"recvfrom", "recvmsg", "sendto", "sendmsg",
	// waiting
	"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "pipe2", "poll", "ppoll", "select", "pselect6",
}

// prSetVMA names mappings; Go's runtime does so (prctl(2), PR_SET_VMA).
const prSetVMA = 0x53564d41

// filterCalls takes all other system calls from this process, in all threads, for good
// (seccomp(2)): they fail with EPERM. The unit's own filter cannot be as narrow, since the jail is
// made in it, and a list of what is allowed costs systemd 14 ms of each start.
func filterCalls(*Config) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return fmt.Errorf("cannot filter system calls: %w", err)
	}
	group := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	for _, name := range guestCalls {
		if _, ok := info.SyscallNames[name]; ok {
			group.Names = append(group.Names, name)
		}
	}
	only := func(name string, argument uint32, operation seccomp.Operation, value uint64) {
		group.NamesWithCondtions = append(group.NamesWithCondtions, seccomp.NameWithConditions{
			Name: name, Conditions: seccomp.ArgumentConditions{{Argument: argument, Operation: operation, Value: value}},
		})
	}
	only("clone", 0, seccomp.BitsSet, unix.CLONE_THREAD)
	only("tgkill", 0, seccomp.Equal, uint64(os.Getpid()))
	only("prctl", 0, seccomp.Equal, prSetVMA)
	policy := seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{group}}
	if err := loadFilter(policy); err != nil {
		return fmt.Errorf("cannot filter system calls: %w", err)
	}
	return nil
}

// loadFilter is the library's function of that name, which takes a thread that could not be
// filtered for success.
func loadFilter(policy seccomp.Policy) error {
	instructions, err := policy.Assemble()
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, 0, len(raw))
	for _, i := range raw {
		filter = append(filter, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	return confine.LoadFilter(filter, unix.SECCOMP_FILTER_FLAG_TSYNC)
}
