// Command magikpodctl is the command line of magikpod: it talks to magikpodd over D-Bus.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/magikrun/magikpod/pod"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run()) }

// run is main with an exit status, for tests.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := newApp(os.Stdout, os.Stderr)
	defer a.close()
	root := newRoot(a)
	err := root.ExecuteContext(ctx)
	return a.report(ctx, err)
}

// The exit statuses. They are a contract; exec returns the command's own instead.
const (
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitConflict    = 5
	exitUnavailable = 6
	exitInvalid     = 7
)

// exitCodes says how each kind of error ends the program.
var exitCodes = map[pod.Kind]int{
	pod.Invalid:       exitInvalid,
	pod.NotFound:      exitNotFound,
	pod.AlreadyExists: exitConflict,
	pod.Conflict:      exitConflict,
	pod.Denied:        exitDenied,
	pod.Exhausted:     exitError,
	pod.Unsupported:   exitError,
	pod.Unavailable:   exitUnavailable,
	pod.Internal:      exitError,
}

// exitStatus ends the program with a status and without a message.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a command line that is wrong.
type usageError struct{ error }

// usagef makes one.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// report says to the user what went wrong, in one line, and returns the exit status.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return 130 // interrupted, as a shell says it
	}
	a.complain(err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return exitUnavailable
	}
	return exitCodes[pod.KindOf(err)]
}
