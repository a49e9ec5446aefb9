package pod

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an error is. The list is closed: D-Bus error names and exit codes are derived from it by one table each.
type Kind string

// The kinds.
const (
	// Invalid is a manifest, name or argument that cannot be accepted as it is.
	Invalid Kind = "Invalid"
	// NotFound is an object that does not exist.
	NotFound Kind = "NotFound"
	// AlreadyExists is a name that is taken.
	AlreadyExists Kind = "AlreadyExists"
	// Conflict is an operation that the object's present stage does not allow.
	Conflict Kind = "Conflict"
	// Denied is an operation that the caller may not do.
	Denied Kind = "Denied"
	// Exhausted is a limit that was reached: pods, addresses, disk space.
	Exhausted Kind = "Exhausted"
	// Unsupported is something that this host, runtime or version cannot do.
	Unsupported Kind = "Unsupported"
	// Unavailable is a failure that may pass: try again later.
	Unavailable Kind = "Unavailable"
	// Internal is everything else.
	Internal Kind = "Internal"
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

// KindOf returns the kind of the outermost error in err's chain that has one; [Internal] when none has, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*kindError](err); ok {
		return e.kind
	}
	return Internal
}
