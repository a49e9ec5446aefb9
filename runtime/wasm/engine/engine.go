package engine

import (
	"context"
	"io"

	"github.com/magikrun/magikpod/internal/wasmform"
)

// MaxModuleBytes is how large a module may be.
const MaxModuleBytes = wasmform.MaxModuleBytes

// PageBytes is the size of a page of WebAssembly memory.
const PageBytes = 64 << 10

// maxPages is all that a 32-bit address reaches: 4 GiB.
const maxPages = 65536

// TrapCode is the exit code of a guest that has ended by a trap: what a shell shows of a process
// that has aborted.
const TrapCode = 134

// Engine compiles and runs modules. Its methods may be called from any goroutine.
type Engine interface {
	// Compile checks a module and puts its machine code into the cache, unless it is there, for a
	// Load without options. Unsupported: a component, or a module that needs what this engine does
	// not have; Invalid: no module.
	Compile(ctx context.Context, module []byte) error
	// Load is Compile, and keeps the result for one Run.
	Load(ctx context.Context, module []byte, o LoadOptions) (Program, error)
}

// LoadOptions say what a program will need.
type LoadOptions struct {
	// MemoryBytes bounds the guest's linear memory: it cannot grow over it. 0: 4 GiB, all that
	// there is. A part of a page does not count.
	MemoryBytes int64
	// Interruptible says that the context of Run may end before the guest does, also while it
	// computes. That costs time in every loop and call.
	Interruptible bool
}

// Program is a module that is ready to run, once.
type Program interface {
	// Check says, before anything of the module runs, why Run with this entry could not begin: what
	// it imports and nobody has, or a function that it does not export. Unsupported or Invalid.
	Check(entry string) error
	// Run runs the module to its end and returns the exit code: what it gave to proc_exit (at most
	// 255), 0 when its function returned, [TrapCode] with an error that says why when it trapped.
	// An error of another exit code (-1) means that it never ran; the end of ctx is an error too.
	//
	// ctx may only end when the program is Interruptible. When it does while the guest waits in a
	// read or accept, Run returns and the guest is left behind: the caller is about to end the
	// process.
	Run(ctx context.Context, config Config) (int, error)
	// Close frees the program.
	Close() error
}

// Config is what a guest gets.
type Config struct {
	// Args are the arguments; Args[0] is the program's name.
	Args []string
	// Env is KEY=VALUE in order; the last of a name wins.
	Env []string
	// Stdin may be nil: it is empty then. Stdout and Stderr may be nil: what is written is lost.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Dirs become the descriptors from 3 on, in this order.
	Dirs []Dir
	// Listeners become the descriptors after those of Dirs, in this order.
	Listeners []Listener
	// Entry is the exported function to call; empty: _start.
	Entry string
}

// Dir is a directory that a guest may use.
type Dir struct {
	Host, Guest string
	// Writable directories are no sandbox: see the package. One that is not is read through
	// [os.Root], out of which no symlink leads.
	Writable bool
}

// Listener is a TCP socket that is opened for the guest. Host may be empty: all addresses.
type Listener struct {
	Host string
	Port int
}
