// Package errkind gives errors a kind. Package pod has all of it under its own names, and that is
// what most import; this one is for programs that must be small: package pod knows the whole API of
// Kubernetes, which takes a process some milliseconds to start with.
package errkind

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an error is. The list is closed: D-Bus error names and exit codes
// are derived from it by one table each.
type Kind string

// The kinds; package pod says what they mean.
const (
	Invalid       Kind = "Invalid"
	NotFound      Kind = "NotFound"
	AlreadyExists Kind = "AlreadyExists"
	Conflict      Kind = "Conflict"
	Denied        Kind = "Denied"
	Exhausted     Kind = "Exhausted"
	Unsupported   Kind = "Unsupported"
	Unavailable   Kind = "Unavailable"
	Internal      Kind = "Internal"
)

// kindError is an error with a kind. Its text is the text of the error it carries.
type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

// Errorf makes an error of the given kind; format and args are those of [fmt.Errorf], %w included.
// The text is lower case, has no period, and reads "cannot VERB OBJECT: cause".
func Errorf(kind Kind, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}

// WithKind gives err a kind without changing its text. A nil err stays nil.
func WithKind(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kindError{kind: kind, err: err}
}

// KindOf returns the kind of the outermost error in err's chain that has one; [Internal] when none
// has, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*kindError](err); ok {
		return e.kind
	}
	return Internal
}
