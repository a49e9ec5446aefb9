package pod

import (
	"fmt"
	"slices"
	"strings"
)

// treePath is where a value is in a document. Its text is made only for a problem: that of every
// value would be as much as all names above it, and a manifest can have one of a megabyte above
// many values.
type treePath struct {
	parent *treePath // nil: the document
	step   string    // a field's name, or [KEY]
	number int       // of an item, when step is empty
}

func (p *treePath) child(name string) *treePath { return &treePath{parent: p, step: name} }
func (p *treePath) key(name string) *treePath {
	return &treePath{parent: p, step: "[" + clip(name) + "]"}
}
func (p *treePath) index(i int) *treePath { return &treePath{parent: p, number: i} }

// String is the path as people write it.
func (p *treePath) String() string {
	var steps []string
	for ; p != nil; p = p.parent {
		step := p.step
		switch {
		case step == "":
			step = fmt.Sprintf("[%d]", p.number)
		case len(step) > maxShown:
			step = step[:maxShown] // it will not be shown whole
		}
		steps = append(steps, step)
	}
	slices.Reverse(steps)
	var b strings.Builder
	for i, step := range steps {
		if i > 0 && step[0] != '[' {
			b.WriteByte('.')
		}
		b.WriteString(step)
	}
	return b.String()
}
