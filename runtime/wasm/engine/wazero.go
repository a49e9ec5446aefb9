package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental/sock"
	"github.com/tetratelabs/wazero/sys"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/wasmform"
)

// wazeroVersion is the version that go.mod has; a test compares them.
const wazeroVersion = "1.12.0"

// leaveAfter is how long a guest may take to notice that its context has ended, before it is left
// behind.
const leaveAfter = 200 * time.Millisecond

type wazeroEngine struct{ cache string }

// New makes the engine of wazero. cache is the directory for machine code, which nobody else may
// write to; empty: nothing is kept.
func New(cache string) Engine { return &wazeroEngine{cache: cache} }

func (e *wazeroEngine) Compile(ctx context.Context, module []byte) error {
	if err := wasmform.Check(module); err != nil {
		return err
	}
	if err := checkImports(ctx, module); err != nil {
		return err
	}
	p, err := e.load(ctx, module, LoadOptions{})
	if err != nil {
		return err
	}
	return p.Close()
}

func (e *wazeroEngine) Load(ctx context.Context, module []byte, o LoadOptions) (Program, error) {
	if err := wasmform.Check(module); err != nil {
		return nil, err
	}
	if o.MemoryBytes < 0 || o.MemoryBytes > 0 && o.MemoryBytes < PageBytes {
		return nil, errkind.Errorf(errkind.Invalid, "the memory limit of %d bytes is less than one page of %d", o.MemoryBytes, PageBytes)
	}
	p, err := e.load(ctx, module, o)
	if err != nil && e.cache != "" && ctx.Err() == nil {
		return load(ctx, module, o, nil) // a cache that cannot be read or written to is no reason not to run
	}
	return p, err
}

func (e *wazeroEngine) load(ctx context.Context, module []byte, o LoadOptions) (Program, error) {
	if e.cache == "" {
		return load(ctx, module, o, nil)
	}
	return e.loadCached(ctx, module, o)
}

// program is a compiled module in a wazero runtime of its own: the limit of the memory belongs to
// the runtime.
type program struct {
	runtime  wazero.Runtime
	cache    wazero.CompilationCache // or nil
	compiled wazero.CompiledModule
}

// load compiles with a cache of wazero's, which the program closes, or without (nil).
func load(ctx context.Context, module []byte, o LoadOptions, cache wazero.CompilationCache) (*program, error) {
	config := wazero.NewRuntimeConfig().WithCloseOnContextDone(o.Interruptible).WithDebugInfoEnabled(true)
	if o.MemoryBytes > 0 {
		config = config.WithMemoryLimitPages(uint32(min(o.MemoryBytes/PageBytes, maxPages)))
	}
	if cache != nil {
		config = config.WithCompilationCache(cache)
	}
	p := &program{runtime: wazero.NewRuntimeWithConfig(ctx, config), cache: cache}
	var err error
	if p.compiled, err = p.runtime.CompileModule(ctx, module); err != nil {
		_ = p.Close()
		if err := context.Cause(ctx); err != nil {
			return nil, errkind.Errorf(errkind.Unavailable, "cannot compile the module: %w", err)
		}
		kind := errkind.Invalid
		if _, ok := errors.AsType[syscall.Errno](err); ok { // the cache's disk is full, or there is no memory for the code
			kind = errkind.Internal
		}
		return nil, errkind.Errorf(kind, "cannot compile the module: %w", err)
	}
	return p, nil
}

func (p *program) Close() error {
	err := p.runtime.Close(context.Background())
	if p.cache != nil {
		err = errors.Join(err, p.cache.Close(context.Background()))
	}
	return err
}

// Run implements [Program].
func (p *program) Run(ctx context.Context, config Config) (int, error) {
	if err := p.Check(config.Entry); err != nil {
		return -1, err
	}
	entry := entryOf(config.Entry)
	wait := &poller{began: time.Now(), sockets: newSockets(config)}
	wait.stdin, _ = config.Stdin.(*os.File)
	module, closeDirs, err := moduleConfig(ctx, config, wait)
	if err != nil {
		return -1, err
	}
	defer closeDirs()
	if err := instantiateWASI(ctx, p.runtime, wait); err != nil {
		return -1, errkind.Errorf(errkind.Internal, "cannot set up WASI: %w", err)
	}
	if len(config.Listeners) > 0 {
		listeners := sock.NewConfig()
		for _, l := range config.Listeners {
			listeners = listeners.WithTCPListener(l.Host, l.Port)
		}
		ctx = sock.WithConfig(ctx, listeners)
	}
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := p.call(ctx, module, entry)
		done <- result{code, err}
	}()
	select {
	case r := <-done:
		return r.code, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.code, r.err
	case <-time.After(leaveAfter):
		return -1, errkind.Errorf(errkind.Unavailable, "the guest was stopped: %w", context.Cause(ctx))
	}
}

// call instantiates the module and calls its function.
func (p *program) call(ctx context.Context, config wazero.ModuleConfig, entry string) (int, error) {
	instance, err := p.runtime.InstantiateModule(ctx, p.compiled, config)
	if err != nil {
		return outcome(ctx, err, -1)
	}
	_, err = instance.ExportedFunction(entry).Call(ctx)
	return outcome(ctx, err, TrapCode)
}

// outcome says what the end of a guest means; code is for an error that is no exit.
func outcome(ctx context.Context, err error, code int) (int, error) {
	exit, ok := errors.AsType[*sys.ExitError](err)
	switch {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return -1, errkind.Errorf(errkind.Unavailable, "the guest was stopped: %w", context.Cause(ctx))
	case ok:
		return int(min(exit.ExitCode(), 255)), nil // 256 must not become the process's 0
	case code == -1:
		return -1, errkind.Errorf(errkind.Invalid, "cannot start the module: %w", err)
	}
	return code, errkind.Errorf(errkind.Internal, "the guest has trapped: %w", err)
}

// entryOf is the name of the function to call.
func entryOf(entry string) string {
	if entry == "" {
		return "_start"
	}
	return entry
}

// Check implements [Program].
func (p *program) Check(entry string) error {
	entry = entryOf(entry)
	if err := checkModules(p.compiled); err != nil {
		return err
	}
	exports := p.compiled.ExportedFunctions()
	f, ok := exports[entry]
	switch {
	case ok && len(f.ParamTypes()) == 0:
		return nil
	case ok:
		return errkind.Errorf(errkind.Unsupported, "its function %.100s has parameters", entry)
	case exports["_initialize"] != nil:
		return errkind.Errorf(errkind.Unsupported, "it is a WASI reactor (a library) without the function %.100s, and only commands can be run", entry)
	}
	return errkind.Errorf(errkind.Unsupported, "it has no function %.100s", entry)
}

// moduleConfig translates. The function closes what was opened for it.
func moduleConfig(ctx context.Context, config Config, wait *poller) (wazero.ModuleConfig, func(), error) {
	module := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithArgs(config.Args...).
		WithSysWalltime().WithNanotime(wait.nanotime, sys.ClockResolution(1)).WithNanosleep(func(ns int64) { sleep(ctx, time.Duration(ns)) }).WithRandSource(rand.Reader).WithOsyield(func() { time.Sleep(0) })
	for _, arg := range config.Args {
		if strings.ContainsRune(arg, 0) {
			return nil, nil, errkind.Errorf(errkind.Unsupported, "the argument %q cannot be passed to a WebAssembly module", arg)
		}
	}
	if config.Stdin != nil {
		module = module.WithStdin(config.Stdin)
	}
	if config.Stdout != nil {
		module = module.WithStdout(config.Stdout)
	}
	if config.Stderr != nil {
		module = module.WithStderr(config.Stderr)
	}
	env, err := lastOfEach(config.Env)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		module = module.WithEnv(name, value)
	}
	files, closeDirs, err := mounts(config.Dirs)
	if err != nil {
		return nil, nil, err
	}
	return module.WithFSConfig(files), closeDirs, nil
}

// lastOfEach keeps the last value of each name, in the order of the names' first appearance.
func lastOfEach(env []string) ([]string, error) {
	var list []string
	at := map[string]int{}
	for _, e := range env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.ContainsRune(e, 0) {
			return nil, errkind.Errorf(errkind.Invalid, "the environment variable %q is not of the form NAME=VALUE", e)
		}
		if i, ok := at[name]; ok {
			list[i] = e
			continue
		}
		at[name] = len(list)
		list = append(list, e)
	}
	return list, nil
}

// mounts makes the guest's directories.
func mounts(dirs []Dir) (wazero.FSConfig, func(), error) {
	files := wazero.NewFSConfig()
	var roots []*os.Root
	closeAll := func() {
		for _, r := range roots {
			_ = r.Close()
		}
	}
	for _, d := range dirs {
		root, err := os.OpenRoot(d.Host)
		if err != nil {
			closeAll()
			return nil, nil, errkind.Errorf(errkind.Invalid, "cannot open the directory %s: %w", d.Host, err)
		}
		if d.Writable {
			_ = root.Close()
			files = files.WithDirMount(d.Host, d.Guest)
			continue
		}
		roots = append(roots, root)
		files = files.WithFSMount(root.FS(), d.Guest)
	}
	return files, closeAll, nil
}
