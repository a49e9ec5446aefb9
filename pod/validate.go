package pod

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What is reported of one manifest at most.
const (
	maxProblems     = 200      // errors, and as many warnings
	maxProblemBytes = 64 << 10 // of their text
)

// Validate returns everything that is wrong with a manifest, and as warnings what it says that will
// not be heard. It is to be called after [Manifest.SetNamespace] and [Default].
//
// Each field is honoured, refused, or warned about; a warning is for what only a cluster has a use
// for. The paths are those of the objects' fields, after NAMESPACE/NAME where there are several
// objects; the objects are in the order of the manifest (pods first), the paths of each are sorted.
// Of a warning only Field and Detail count: see [Problems].
func Validate(m *Manifest) (errs, warnings field.ErrorList) {
	objects := m.objects()
	v := manifestValidator{names: make(map[string]bool), ports: make(map[hostPort]*portUses)}
	for _, o := range objects {
		c := checker{}
		v.object(&c, o)
		for _, path := range m.ignored[o.meta] {
			c.warn(field.NewPath(path), "is ignored: a cluster generates it")
		}
		prefix := ""
		if len(objects) > 1 {
			prefix = o.prefix()
		}
		errs = append(errs, finish(c.errs, prefix)...)
		warnings = append(warnings, finish(c.warnings, prefix)...)
		if len(errs) > maxProblems {
			break // enough is known
		}
	}
	return bounded(errs), bounded(warnings)
}

// Of puts before the paths of problems of p, a pod of m, what [Validate] puts there: NAMESPACE/NAME
// when m has several objects. It changes errs.
func (m *Manifest) Of(p *corev1.Pod, errs field.ErrorList) field.ErrorList {
	prefix := ""
	if len(m.Pods)+len(m.ConfigMaps)+len(m.Secrets) > 1 {
		prefix = manifestObject{kind: "Pod", meta: &p.ObjectMeta, pod: p}.prefix()
	}
	return finish(errs, prefix)
}

// finish sorts the problems of one object, removes those that are there twice and puts prefix
// before their paths.
func finish(list field.ErrorList, prefix string) field.ErrorList {
	slices.SortStableFunc(list, func(a, b *field.Error) int {
		return cmp.Or(comparePaths(a.Field, b.Field), cmp.Compare(a.ErrorBody(), b.ErrorBody()))
	})
	list = slices.CompactFunc(list, func(a, b *field.Error) bool { return a.Field == b.Field && a.ErrorBody() == b.ErrorBody() })
	for _, e := range list {
		e.Field = prefix + e.Field
	}
	return list
}

// bounded leaves one more than are reported, which [Problems] makes a sentence of.
func bounded(list field.ErrorList) field.ErrorList {
	return list[:min(len(list), maxProblems+1)]
}

// manifestValidator is what the objects of one manifest share.
type manifestValidator struct {
	names map[string]bool // kind NAMESPACE/NAME
	ports map[hostPort]*portUses
}

func (v *manifestValidator) object(c *checker, o manifestObject) {
	id := o.kind + " " + o.meta.Namespace + "/" + o.meta.Name
	if v.names[id] && o.meta.Name != "" {
		c.add(field.Duplicate(field.NewPath("metadata", "name"), clip(o.meta.Name)))
	}
	v.names[id] = true
	c.metadata(o.meta)
	switch {
	case o.pod != nil:
		c.podObject(o.pod)
		v.hostPorts(c, o.pod)
	case o.config != nil:
		c.configMap(o.config)
	case o.secret != nil:
		c.secret(o.secret)
	}
}

// checker collects the problems of one object. Its methods check a part of the object at a path.
type checker struct {
	errs, warnings field.ErrorList
	spec           *corev1.PodSpec // of the pod that is checked
}

func (c *checker) add(e *field.Error) {
	if len(c.errs) <= maxProblems {
		c.errs = append(c.errs, e)
	}
}

// refuse reports a field that is well formed and cannot be honoured; why says so.
func (c *checker) refuse(path *field.Path, why string) { c.add(field.Forbidden(path, why)) }

func (c *checker) invalid(path *field.Path, value any, detail string) {
	if s, ok := value.(string); ok {
		value = clip(s)
	}
	c.add(field.Invalid(path, value, detail))
}

func (c *checker) required(path *field.Path, detail string) { c.add(field.Required(path, detail)) }

// warn reports a field that will not be heard; what follows the path in the sentence.
func (c *checker) warn(path *field.Path, what string) {
	if len(c.warnings) <= maxProblems {
		c.warnings = append(c.warnings, &field.Error{Type: field.ErrorTypeForbidden, Field: path.String(), Detail: what})
	}
}

// all reports each of a list of details, as the functions of apimachinery's validation package
// return them.
func (c *checker) all(path *field.Path, value string, details []string) {
	for _, d := range details {
		// The regular expression helps nobody.
		if i, j := strings.Index(d, ", regex used for validation is "), strings.LastIndex(d, "')"); i >= 0 && j > i {
			d = d[:i] + d[j+1:]
		}
		c.invalid(path, value, strings.ReplaceAll(d, "  ", " "))
	}
}

// oneOf checks that value is one of a closed list.
func oneOf[T ~string](c *checker, path *field.Path, value T, allowed ...T) {
	if !slices.Contains(allowed, value) {
		c.add(field.NotSupported(path, T(clip(string(value))), allowed))
	}
}

// first says how many of n items are to be checked, and reports that there are more than is allowed.
func (c *checker) first(path *field.Path, n, allowed int) int {
	if n <= allowed {
		return n
	}
	e := field.TooMany(path, n, allowed)
	e.Detail += fmt.Sprintf("; only the first %d were checked", allowed)
	c.add(e)
	return allowed
}

// between checks a whole number.
func (c *checker) between(path *field.Path, value, low, high int64) {
	if value < low || value > high {
		c.invalid(path, value, fmt.Sprintf("must be between %d and %d", low, high))
	}
}

// clip bounds a text that an error repeats.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

func isTrue(b *bool) bool { return b != nil && *b }
