//go:build linux

package jail

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/shim"
)

// What a compiler may use, so that a hostile module does not take the host along. MEASURED: a Go
// program of 6 MB takes 1.6 s (a hundred times as much on an emulated CPU) and 170 MB, one of 33 kB
// in C 25 ms and 11 MB; hostile ones take any time, and 1600 times their size.
var (
	compilerTime   = time.Minute    // of a CPU, and compilerTimePerMiB for each MiB of the module
	compilerMemory = int64(1 << 30) // bytes, and compilerMemoryPerByte for each of the module, but maxCompilerMemory at most
)

const (
	compilerTimePerMiB    = 30 * time.Second
	compilerMemoryPerByte = 64
	maxCompilerMemory     = 4 << 30
)

// compilerNice makes what runs beside it in its cgroup, the daemon, go first.
const compilerNice = 19

// exitKinds are the exit codes of Compile for the kinds of errors.
var exitKinds = map[int]errkind.Kind{
	shim.ExitFailure: errkind.Invalid, shim.ExitUsage: errkind.Unsupported, shim.ExitTempFail: errkind.Exhausted, exitIO: errkind.Internal,
}

const exitIO = 74 // EX_IOERR of sysexits.h

// CompileKind is the kind of the error that a line on the compiler's stderr is about. ok is false
// for an exit code that Compile does not return: the process has crashed.
func CompileKind(code int) (kind errkind.Kind, ok bool) {
	kind, ok = exitKinds[code]
	return kind, ok
}

// Compile puts the machine code of a module into the cache and returns an exit code; the reason of
// a failure is one line on stderr, and the code says its kind ([CompileKind]).
func Compile(cache, path string) int {
	module, err := ReadModule(path)
	if err == nil {
		err = limitCompiler(int64(len(module)))
	}
	if err == nil {
		err = engine.New(cache).Compile(context.Background(), module)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, oneLine(err))
	for code, kind := range exitKinds {
		if kind == errkind.KindOf(err) {
			return code
		}
	}
	return exitIO
}

// limitCompiler bounds this process, which compiles a module of so many bytes.
func limitCompiler(size int64) error {
	memory := uint64(min(compilerMemory+size*compilerMemoryPerByte, maxCompilerMemory))
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: memory, Max: memory}); err != nil {
		return fmt.Errorf("cannot limit the compiler's memory: %w", err)
	}
	allowed := compilerTime + time.Duration(size)*compilerTimePerMiB/(1<<20)
	seconds := uint64(allowed / time.Second)
	over := make(chan os.Signal, 1)
	signal.Notify(over, unix.SIGXCPU)
	go func() {
		<-over
		fmt.Fprintf(os.Stderr, "compiling it takes more than %d s of CPU time\n", seconds)
		os.Exit(shim.ExitTempFail)
	}()
	if err := unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: seconds, Max: seconds + 5}); err != nil { // after 5 s more: SIGKILL
		return fmt.Errorf("cannot limit the compiler's time: %w", err)
	}
	threads, err := os.ReadDir("/proc/self/task") // those that come later have it of these
	if err != nil {
		return err
	}
	for _, thread := range threads {
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, compilerNice) // to be nicer is always allowed; a thread may have ended
		}
	}
	return os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
}
