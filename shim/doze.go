package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Most pods say nothing most of the time, and what a Go program keeps in memory to wait for a line
// is 0.7 MB and six threads. So a relay that has had nothing to do for a while dozes: it becomes
// [dozeProgram], which waits with the same descriptors in one page, and becomes this program again
// when there is something to do. The process stays the same one, and so do its namespaces, its
// child and the signals that it blocks.

const (
	// firstRest is how long a relay waits for something to do before it dozes. The time doubles
	// each time that it is woken, up to lastRest: so a pod that says something now and then costs
	// at most one start of this program in lastRest.
	firstRest = 2 * time.Second
	lastRest  = time.Minute
)

// dozeVariable is the environment variable in which a relay that has dozed finds its [dozeState].
const dozeVariable = "MAGIKSHIM_DOZED"

// dozeState is what pause knows. The numbers are descriptors.
type dozeState struct {
	Config             *PauseConfig
	Epoll, Added, Wake int
	Child              int // pidfd, or -1
	Exe                int // this program
	Rest               time.Duration
	Streams            map[int]string
}

// doze makes this process doze. It returns only when that fails, and then nothing has changed.
func (r *relay) doze() error {
	exe, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot doze: %w", err)
	}
	defer unix.Close(exe)
	state := dozeState{Config: r.config, Epoll: r.epoll, Added: r.added, Wake: r.wake, Child: r.extraFD, Exe: exe, Rest: r.rest, Streams: map[int]string{}}
	kept := []int{r.epoll, r.added, r.wake, exe}
	if r.extraFD >= 0 {
		kept = append(kept, r.extraFD)
	}
	for fd, s := range r.streams {
		state.Streams[fd] = s.name.String()
		kept = append(kept, fd)
	}
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("cannot doze: %w", err)
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, dozeVariable+"=") })
	program, err := sealedProgram(dozeProgram(r.epoll, exe, os.Args, append(env, dozeVariable+"="+string(text))), 0o500)
	if err != nil {
		return fmt.Errorf("cannot doze: %w", err)
	}
	defer unix.Close(program)
	argv, err := syscall.SlicePtrFromStrings(os.Args)
	if err != nil {
		return fmt.Errorf("cannot doze: %w", err)
	}
	keep := func(flag int) {
		for _, fd := range kept {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
		}
	}
	keep(0)
	err = executeFD(program, argv, []*byte{nil})
	keep(unix.FD_CLOEXEC)
	return fmt.Errorf("cannot doze: %w", err)
}

// errNotDozed says that this process has not dozed.
var errNotDozed = errors.New("it has not dozed")

// wakeUp goes on with what this process did before it dozed.
func wakeUp() error {
	text := os.Getenv(dozeVariable)
	if text == "" {
		return errNotDozed
	}
	var state dozeState
	if err := json.Unmarshal([]byte(text), &state); err != nil {
		return fmt.Errorf("cannot wake up: %w", err)
	}
	_ = unix.Close(state.Exe)
	if state.Child >= 0 {
		defer (&reaper{pidfd: state.Child}).stop()
	}
	r := emptyRelay(state.Config.FIFODir, state.Wake, complainPause)
	r.epoll, r.added, r.extraFD = state.Epoll, state.Added, state.Child
	r.config, r.rest = state.Config, min(2*state.Rest, lastRest)
	for _, fd := range []int{r.epoll, r.added, r.wake, r.extraFD} {
		if fd >= 0 {
			unix.CloseOnExec(fd)
		}
	}
	if err := r.openSink(r.config); err != nil {
		return err
	}
	for fd, text := range state.Streams {
		name, ok := parseLogName(text)
		if !ok {
			r.closeAll()
			return fmt.Errorf("cannot wake up: %q is no log pipe", text)
		}
		unix.CloseOnExec(fd)
		r.streams[fd] = &stream{fd: fd, name: name, out: r.openWriter(name)}
	}
	return r.run()
}

// StopSignal ends pause after the drain (KillSignal=). It is SIGRTMIN+3: a signal that Go's runtime
// leaves blocked in all threads when it was blocked at the start, so that it also stays pending
// while this program is executed. SIGTERM and SIGINT the runtime unblocks before it has a handler.
const StopSignal = unix.Signal(37)

// blockStop blocks StopSignal and returns the descriptor that tells of it. All threads must block
// it, also those that the runtime has made already. So pause starts once more, and does so with the
// runtime's settings of a program that has nothing to do in parallel and next to no garbage: the
// runtime takes them when it starts.
func blockStop() (int, error) {
	var stop, before unix.Sigset_t
	stop.Val[0] = 1 << (StopSignal - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &stop, &before); err != nil {
		return -1, fmt.Errorf("cannot block signals: %w", err)
	}
	if before.Val[0]&stop.Val[0] == 0 {
		err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), "GOMAXPROCS=1", "GOGC=20", "GOMEMLIMIT=16MiB"))
		return -1, fmt.Errorf("cannot execute pause: %w", err)
	}
	fd, err := unix.Signalfd(-1, &stop, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("cannot block signals: %w", err)
	}
	return fd, nil
}

// nameProcess gives this process its name back, which execve takes from a descriptor.
func nameProcess() {
	name := []byte("magikshim\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

// dozeData is what dozeCode reads.
type dozeData struct {
	Epoll, Exe int32
	Argv, Envp uint64   // addresses
	Second     [2]int64 // struct timespec
	Empty      [8]byte  // the empty path
}

// dozeBase is where dozeData is in memory.
const (
	dozeBase     = reapEntry + 128
	dozeDataSize = 48
)

// dozeProgram is an ELF file of one segment that waits until epoll has something, and then executes
// exe. When that fails, as it does without memory, it tries again a second later.
func dozeProgram(epoll, exe int, argv, env []string) []byte {
	data := dozeData{Epoll: int32(epoll), Exe: int32(exe), Argv: dozeBase + dozeDataSize, Second: [2]int64{1, 0}}
	data.Envp = data.Argv + 8*uint64(len(argv)+1)
	var pointers, text []byte
	texts := data.Envp + 8*uint64(len(env)+1)
	for _, list := range [][]string{argv, env} {
		for _, s := range list {
			pointers = binary.LittleEndian.AppendUint64(pointers, texts+uint64(len(text)))
			text = append(text, s+"\x00"...)
		}
		pointers = binary.LittleEndian.AppendUint64(pointers, 0)
	}
	code := make([]byte, dozeBase-reapEntry)
	copy(code, slices.Concat(dozeCode...))
	code, _ = binary.Append(code, binary.LittleEndian, data) // its size is fixed
	return tinyProgram(slices.Concat(code, pointers, text))
}
