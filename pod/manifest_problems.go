package pod

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/internal/printable"
)

// The severities of a [Problem].
const (
	SeverityError   = "error"
	SeverityWarning = "warning"
)

// invalidError is a manifest that cannot be accepted, with everything that is wrong with it.
type invalidError struct {
	problems []Problem // errors only, at least one
}

// Error is one line for one problem; a line for each, after a first line, for several.
func (e *invalidError) Error() string {
	if len(e.problems) == 1 {
		return "cannot accept the manifest: " + e.problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "cannot accept the manifest: %d problems:", len(e.problems))
	for _, p := range e.problems {
		b.WriteString("\n" + p.String())
	}
	return b.String()
}

// String is one line: "PATH: MESSAGE", after "warning: " for a warning.
func (p Problem) String() string {
	text := p.Message
	if p.Path != "" {
		text = p.Path + ": " + text
	}
	if p.Severity == SeverityWarning {
		text = "warning: " + text
	}
	return text
}

// Problems puts the errors and warnings of [Validate] together: first the errors, then the
// warnings, each in the order of the list. Of a warning only the detail is shown: its type says
// nothing.
func Problems(errs, warnings field.ErrorList) []Problem {
	list := make([]Problem, 0, len(errs)+len(warnings))
	for _, e := range errs {
		list = append(list, Problem{Severity: SeverityError, Path: cleanPath(e.Field), Message: shown(e.ErrorBody())})
	}
	for _, w := range warnings {
		list = append(list, Problem{Severity: SeverityWarning, Path: cleanPath(w.Field), Message: shown(w.Detail)})
	}
	return boundProblems(list, 0)
}

// boundProblems keeps an answer short: at most [maxProblems] errors and as many warnings, and
// [maxProblemBytes] of text. The last one says how many there are besides it, with the more that
// were left out before.
func boundProblems(list []Problem, more int) []Problem {
	bytes, count := 0, map[string]int{}
	kept := list[:0]
	for _, p := range list {
		size := len(p.Path) + len(p.Message)
		if count[p.Severity] >= maxProblems || bytes+size > maxProblemBytes {
			more++
			continue
		}
		count[p.Severity]++
		bytes += size
		kept = append(kept, p)
	}
	if more > 0 {
		severity := SeverityWarning
		if count[SeverityError] > 0 {
			severity = SeverityError
		}
		kept = append(kept, Problem{Severity: severity, Message: fmt.Sprintf("there are more problems than these: %d at least", more)})
	}
	return kept
}

// ProblemsOf lists the problems that err carries: those of a manifest that [Parse] or
// [InvalidError] refused, else err itself as one. Nil has none.
func ProblemsOf(err error) []Problem {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*invalidError](err); ok {
		return slices.Clone(e.problems)
	}
	return []Problem{{Severity: SeverityError, Message: err.Error()}}
}

// InvalidError makes an error of kind Invalid from errs, nil when there are none. Its text has one
// line for one problem, else a line for each.
func InvalidError(errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return WithKind(Invalid, &invalidError{problems: Problems(errs, nil)})
}

// manifestObject is one object of a manifest, whatever its kind.
type manifestObject struct {
	kind   string // for people
	meta   *metav1.ObjectMeta
	pod    *corev1.Pod
	config *corev1.ConfigMap
	secret *corev1.Secret
}

func (m *Manifest) objects() []manifestObject {
	list := make([]manifestObject, 0, len(m.Pods)+len(m.ConfigMaps)+len(m.Secrets))
	for _, p := range m.Pods {
		list = append(list, manifestObject{kind: "Pod", meta: &p.ObjectMeta, pod: p})
	}
	for _, c := range m.ConfigMaps {
		list = append(list, manifestObject{kind: "ConfigMap", meta: &c.ObjectMeta, config: c})
	}
	for _, s := range m.Secrets {
		list = append(list, manifestObject{kind: "Secret", meta: &s.ObjectMeta, secret: s})
	}
	return list
}

// prefix is what the object's paths begin with where there are several objects.
func (o manifestObject) prefix() string {
	name := cleanPath(o.meta.Namespace + "/" + o.meta.Name)
	if o.pod == nil {
		name = strings.ToLower(o.kind) + " " + name
	}
	return name + ": "
}

// maxShown bounds a message that quotes what the user wrote, in bytes.
const maxShown = 600

// shown makes text from outside fit for one line of a message.
func shown(s string) string {
	text := printable.Cut(s, maxShown)
	if len(s) > maxShown {
		text += "..."
	}
	return text
}

// cleanPath makes a path, which may hold keys that the user chose, fit for one line.
func cleanPath(path string) string { return shown(path) }

// comparePaths orders paths so that [2] comes before [10].
func comparePaths(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			// Numbers without leading zeros: the longer one is the greater one.
			if c := cmp.Or(cmp.Compare(na, nb), cmp.Compare(a[:na], b[:nb])); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
