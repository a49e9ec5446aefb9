package pod

import "github.com/magikrun/magikpod/internal/errkind"

// Kind says what sort of failure an error is. The list is closed: D-Bus error names and exit codes
// are derived from it by one table each.
type Kind = errkind.Kind

// The kinds.
const (
	// Invalid is a manifest, name or argument that cannot be accepted as it is.
	Invalid = errkind.Invalid
	// NotFound is an object that does not exist.
	NotFound = errkind.NotFound
	// AlreadyExists is a name that is taken.
	AlreadyExists = errkind.AlreadyExists
	// Conflict is an operation that the object's present stage does not allow.
	Conflict = errkind.Conflict
	// Denied is an operation that the caller may not do.
	Denied = errkind.Denied
	// Exhausted is a limit that was reached: pods, addresses, disk space.
	Exhausted = errkind.Exhausted
	// Unsupported is something that this host, runtime or version cannot do.
	Unsupported = errkind.Unsupported
	// Unavailable is a failure that may pass: try again later.
	Unavailable = errkind.Unavailable
	// Internal is everything else.
	Internal = errkind.Internal
)

// Errorf makes an error of the given kind; format and args are those of [fmt.Errorf], %w included.
// The text is lower case, has no period, and reads "cannot VERB OBJECT: cause".
func Errorf(kind Kind, format string, args ...any) error {
	return errkind.Errorf(kind, format, args...)
}

// WithKind gives err a kind without changing its text. A nil err stays nil.
func WithKind(kind Kind, err error) error { return errkind.WithKind(kind, err) }

// KindOf returns the kind of the outermost error in err's chain that has one; [Internal] when none
// has, and "" for nil.
func KindOf(err error) Kind { return errkind.KindOf(err) }

// KindOr is [KindOf], and fallback for an error that has no kind, or [Internal].
func KindOr(err error, fallback Kind) Kind {
	if kind := KindOf(err); kind != Internal {
		return kind
	}
	return fallback
}
