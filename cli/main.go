package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/magikrun/magikpod/internal/errkind"
)

// Local is what is done without the daemon. It links much: Kubernetes' types, an engine of
// WebAssembly. A program that starts for each command has none of it; see [app.handOver].
type Local struct {
	// Check returns every problem of a manifest, a line each; ok: none of them is an error.
	Check func(manifest []byte, namespace string) (lines []string, ok bool)
	// PodNames returns the pods of a manifest as NAMESPACE/NAME.
	PodNames func(manifest []byte, namespace string) ([]string, error)
	// RunModule runs the WebAssembly module args[0] and returns its exit status. With an error comes
	// the status of a module that has trapped, or 0: it was not run.
	RunModule func(ctx context.Context, flags ModuleFlags, args []string) (code int, err error)
}

// Main is magikpodctl, which returns its exit status. A nil local: the program beside this one does
// what is local.
func Main(version string, local *Local) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go cancelBySignal(cancel)
	a := newApp(os.Stdout, os.Stderr)
	a.version, a.local = version, local
	return a.report(ctx, newRoot(a).ExecuteContext(ctx))
}

// cancelBySignal is a goroutine of its own, as what it begins with takes a while: that goes on while
// the daemon is waited for.
func cancelBySignal(cancel context.CancelFunc) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
	cancel()
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
var exitCodes = map[errkind.Kind]int{
	errkind.Invalid:       exitInvalid,
	errkind.NotFound:      exitNotFound,
	errkind.AlreadyExists: exitConflict,
	errkind.Conflict:      exitConflict,
	errkind.Denied:        exitDenied,
	errkind.Exhausted:     exitError,
	errkind.Unsupported:   exitError,
	errkind.Unavailable:   exitUnavailable,
	errkind.Internal:      exitError,
}

// exitStatus ends the program with a status and without a message.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a command line that is wrong.
type usageError struct{ error }

// Usagef makes the error of a command line that is wrong.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

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
	return exitCodes[errkind.KindOf(err)]
}
