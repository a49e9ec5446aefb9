package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// reapFile is the beginning of an ELF file of one segment (elf(5)), and the process's name, which
// its code gives to PR_SET_NAME; the code follows.
type reapFile struct {
	Ident                                                [16]byte
	Type, Machine                                        uint16
	Version                                              uint32
	Entry, Phoff, Shoff                                  uint64
	Flags                                                uint32
	Ehsize, Phentsize, Phnum, Shentsize, Shnum, Shstrndx uint16

	SegmentType, SegmentFlags                      uint32
	Offset, Vaddr, Paddr, Filesz, Memsz, Alignment uint64

	Name [16]byte
}

// Where the program is in memory: all of it, its name, its code.
const (
	reapBase  = 0x400000
	reapName  = reapBase + 64 + 56
	reapEntry = reapName + 16
)

// reapProgram is the whole program of the first process of a PID namespace, an ELF file of some 200
// bytes: it makes itself unreadable to others, takes its name, and waits in ppoll(2) for ever. A
// copy of magikshim in its place would take 3.4 MB of memory in each pod, since it must not be the
// file that the host runs.
func reapProgram() []byte { return tinyProgram(slices.Concat(reapCode...)) }

// tinyProgram is an ELF file of one segment, which begins to run at the first byte of code.
func tinyProgram(code []byte) []byte {
	size := uint64(reapEntry - reapBase + len(code))
	header := reapFile{
		Ident:   [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, // 64 bits, little-endian
		Type:    2,                                      // ET_EXEC
		Machine: reapMachine, Version: 1, Entry: reapEntry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		SegmentType: 1, SegmentFlags: 4 | 1, // PT_LOAD, to be read and executed
		Vaddr: reapBase, Paddr: reapBase, Filesz: size, Memsz: size, Alignment: 0x10000,
	}
	copy(header.Name[:], "magikshim")
	file, _ := binary.Append(nil, binary.LittleEndian, header) // its size is fixed
	return append(file, code...)
}

// sealedProgram is a program in a file in memory that nobody can change: what is behind /proc/1/exe
// of a pod is no file of the host's.
func sealedProgram(program []byte, mode uint32) (int, error) {
	fd, err := unix.MemfdCreate("magikshim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3
		fd, err = unix.MemfdCreate("magikshim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if n, err := unix.Write(fd, program); err != nil || n != len(program) {
		return -1, fmt.Errorf("write: %d bytes: %w", n, err)
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return -1, fmt.Errorf("fchmod: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal: %w", err)
	}
	return fd, nil
}

// reapFilter allows what the program does, and its execution from a descriptor, which no other can
// take the place of. All else fails with EPERM (seccomp(2)).
func reapFilter(program int) []unix.SockFilter {
	const (
		number, architecture, argument = 0, 4, 16 // offsets in struct seccomp_data, of arguments that of the first one's lower half
		load                           = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal                          = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer                         = unix.BPF_RET | unix.BPF_K
		refuse                         = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	return []unix.SockFilter{
		{Code: load, K: architecture},
		{Code: equal, K: reapArchitecture, Jf: 12},
		{Code: load, K: number},
		{Code: equal, K: unix.SYS_PPOLL, Jt: 11},
		{Code: equal, K: unix.SYS_RT_SIGRETURN, Jt: 10}, // for the runtime, until the execution
		{Code: equal, K: unix.SYS_PRCTL, Jf: 3},
		{Code: load, K: argument},
		{Code: equal, K: unix.PR_SET_DUMPABLE, Jt: 7},
		{Code: equal, K: unix.PR_SET_NAME, Jt: 6, Jf: 5},
		{Code: equal, K: unix.SYS_EXECVEAT, Jf: 4},
		{Code: load, K: argument},
		{Code: equal, K: uint32(program), Jf: 2},
		{Code: load, K: argument + 4*8}, // flags
		{Code: equal, K: unix.AT_EMPTY_PATH, Jt: 1},
		{Code: answer, K: refuse},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
}
