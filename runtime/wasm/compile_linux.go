package wasm

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/firstbytes"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/runtime/wasm/jail"
)

// maxCompilers bounds the quick compilers at the same time, and as many slow ones. A hostile module
// makes a compiler slow (wazero's time grows with the square of a function's blocks, nested or not:
// MEASURED 0.7 s for 16,000 of them, 48 kB), and nobody knows before. So each begins as a quick
// one, and those that turn out to be slow wait for each other only.
const maxCompilers = 2

// quickTime is how long a compiler is a quick one: some 20 MB of machine code.
const quickTime = 5 * time.Second

// compileTimeout bounds the compilation of one module, without the time that it waits for others.
// The CPU time that jail.Compile allows is over sooner, on a host that has some.
const compileTimeout = 10 * time.Minute

// Why a compiler is ended.
var (
	errTimeout = pod.Errorf(pod.Exhausted, "compiling it takes more than %v", compileTimeout)
	errKilled  = pod.Errorf(pod.Exhausted, "its compiler was killed, as the kernel does when memory runs out")
	errRemoved = pod.Errorf(pod.NotFound, "its image was removed")
	errUnasked = errors.New("nobody waits for it")
	errSlow    = errors.New("it is slow")
)

// compilation is one that several containers may wait for. It ends with the last of them, and with
// the module's image.
type compilation struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiting int
	err     error
}

// cached says whether the machine code of a module is in the cache.
func (r *Runtime) cached(file string) bool {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return false
	}
	key := fileKey{file, st.Ino, st.Size, int64(st.Mtim.Sec), int64(st.Mtim.Nsec)}
	r.mu.Lock()
	sum, known := r.digests[key]
	r.mu.Unlock()
	if !known {
		module, err := jail.ReadModule(file)
		if err != nil {
			return false
		}
		sum = sha256.Sum256(module)
		r.mu.Lock()
		if len(r.digests) >= maxDigests {
			clear(r.digests)
		}
		err = noteSource(r.config.Cache, sum, file)
		if err == nil {
			r.digests[key] = sum
		}
		r.mu.Unlock()
		if err != nil {
			return false
		}
	}
	return engine.Cached(r.config.Cache, sum)
}

// compile fills the cache by a process of its own, once for all that wait for the same module.
func (r *Runtime) compile(ctx context.Context, file string) error {
	if r.cached(file) {
		return nil
	}
	r.mu.Lock()
	if err := r.refused[file]; err != nil {
		r.mu.Unlock()
		return err
	}
	c := r.compiling[file]
	if c == nil {
		running, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		c = &compilation{done: make(chan struct{}), cancel: cancel}
		r.compiling[file] = c
		go func() {
			c.err = r.runCompiler(running, file)
			r.mu.Lock()
			if isFinal(c.err) && r.compiling[file] == c && len(r.refused) < maxDigests {
				r.refused[file] = c.err
			}
			r.end(file, c, nil)
			r.mu.Unlock()
			close(c.done)
		}()
	}
	c.waiting++
	r.mu.Unlock()
	return runtime.Wait(ctx, func() error { return r.await(ctx, file, c) })
}

// await waits for a compilation; the caller has been counted.
func (r *Runtime) await(ctx context.Context, file string, c *compilation) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.waiting--; c.waiting == 0 {
		r.end(file, c, errUnasked)
	}
	return pod.WithKind(pod.Unavailable, context.Cause(ctx))
}

// isFinal says whether a compilation would end with the same error again: what a module is, or
// takes. Whoever starts a container again and again need not wait for that each time.
func isFinal(err error) bool {
	switch pod.KindOf(err) {
	case pod.Invalid, pod.Unsupported, pod.Exhausted:
		return !errors.Is(err, errKilled) && !errors.Is(err, errTimeout)
	}
	return false
}

// end ends a compilation that may have ended already; who comes later begins another one. r.mu is held.
func (r *Runtime) end(file string, c *compilation, cause error) {
	c.cancel(cause)
	if r.compiling[file] == c {
		delete(r.compiling, file)
	}
}

// endRemoved ends the compilations of modules that are in no image any more. r.mu is held.
func (r *Runtime) endRemoved() {
	for file, c := range r.compiling {
		if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
			r.end(file, c, errRemoved)
		}
	}
}

// runCompiler compiles as soon as others let it.
func (r *Runtime) runCompiler(ctx context.Context, file string) error {
	quick, slow := runtime.NewSlot(r.quick), runtime.NewSlot(r.slow)
	defer quick.Release()
	defer slow.Release()
	if err := quick.Take(ctx); err != nil {
		return err
	}
	running, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	done := make(chan error, 1)
	go func() { done <- r.runProcess(running, file) }()
	select {
	case err := <-done:
		return err
	case <-time.After(quickTime):
	}
	if slow.TryTake() { // it goes on
		quick.Release()
		return <-done
	}
	kill(errSlow) // it makes way, and begins anew later
	err := <-done
	quick.Release()
	if !errors.Is(err, errSlow) {
		return err
	}
	if err := slow.Take(ctx); err != nil {
		return err
	}
	return r.runProcess(ctx, file)
}

// runProcess compiles in a process of its own, which a hostile module may crash.
func (r *Runtime) runProcess(ctx context.Context, file string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, compileTimeout, errTimeout)
	defer cancel()
	// The compiler ends with the daemon. The kernel means the thread that has started it, which
	// must not end before.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, r.config.Program, "compile", "--cache", r.config.Cache, file)
	cmd.Env = []string{}
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr := firstbytes.Writer{Max: 4096}
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if cmd.Process != nil {
		_ = engine.RemoveUnfinished(r.config.Cache, cmd.Process.Pid) // else ForgetImages does, some time
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.compileError(file, err, stderr.String())
}

// compileError says in one line why a compiler has failed.
func (r *Runtime) compileError(file string, err error, stderr string) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return pod.Errorf(pod.Internal, "cannot run its compiler: %w", err)
	}
	text := strings.TrimSpace(stderr)
	if kind, ok := jail.CompileKind(exit.ExitCode()); ok {
		return pod.Errorf(kind, "%s", text)
	}
	r.config.Log.Debug("the compiler of a module has crashed", "module", file, "error", err, "stderr", text)
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return errKilled
	}
	first, _, _ := strings.Cut(text, "\n")
	for line := range strings.Lines(text) { // how Go's runtime says it, some lines before or after which it says more
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			first = strings.TrimSpace(line)
			break
		}
	}
	if strings.Contains(first, "out of memory") || strings.Contains(first, "cannot allocate memory") {
		return pod.Errorf(pod.Exhausted, "compiling it takes too much memory")
	}
	return pod.Errorf(pod.Internal, "its compiler has crashed: %w: %.200s", err, first)
}
