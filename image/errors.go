package image

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/magikrun/magikpod/internal/printable"
	"github.com/magikrun/magikpod/pod"
)

// errClosed is why the work of a closed store ends.
var errClosed = pod.Errorf(pod.Unavailable, "the image store is closed")

func invalid(format string, args ...any) error { return pod.Errorf(pod.Invalid, format, args...) }

// fail completes an error of the store: what could not be done, and the kind. A full disk is said
// in one clear line.
func (s *Store) fail(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	action := fmt.Sprintf(format, args...)
	switch {
	case isFull(err):
		return pod.Errorf(pod.Exhausted, "%s: no space left in %s", action, s.dir)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return pod.Errorf(pod.Unavailable, "%s: %w", action, err)
	}
	return pod.Errorf(pod.KindOf(err), "%s: %w", action, said{err})
}

// maxSaid bounds the words of an error, in bytes: they end up in the status and events of pods.
const maxSaid = 2000

// said is an error with words of an archive or a registry in it: names, media types, answers. They
// become one line that shows as itself.
type said struct{ err error }

func (e said) Unwrap() error { return e.err }

// Error leaves out the middle of what is too long: the cause stands at the end.
func (e said) Error() string {
	text := e.err.Error()
	if len(text) <= maxSaid {
		return printable.Cut(text, maxSaid)
	}
	return printable.Cut(text[:maxSaid/2], maxSaid/2) + " ... " + printable.Cut(text[len(text)-maxSaid/2:], maxSaid/2)
}

// isFull says whether the disk of the store is full; the same error of somebody else's file does
// not come here.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// contentError gives an error of reading or unpacking what came from outside its kind: the host's
// faults are Internal, all others are the content's.
func contentError(err error) error {
	if err == nil || pod.KindOf(err) != pod.Internal || isFull(err) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, host := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EPERM, syscall.EACCES} {
		if errors.Is(err, host) {
			return err
		}
	}
	return pod.WithKind(pod.Invalid, err)
}
