package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/internal/podapi"
)

// maxDocuments bounds the documents of one manifest, the items of Lists included.
const maxDocuments = 4096

// Manifest is what one file of documents says, in the order of the file within each kind.
type Manifest struct {
	Pods       []*corev1.Pod
	ConfigMaps []*corev1.ConfigMap
	Secrets    []*corev1.Secret // stringData folded into data

	// ignored are the fields that Parse took out, by object; [Validate] warns about them.
	ignored map[*metav1.ObjectMeta][]string
}

// Read turns a manifest into values: [Parse], [Manifest.SetNamespace], [Default] and [Validate].
// Between the steps it asks stop, whose error ends it; nil: nobody is asked. err says why there is
// no manifest to validate; errs and warnings are what Validate says.
func Read(data []byte, namespace string, stop func() error) (m *Manifest, errs, warnings field.ErrorList, err error) {
	parsed, err := Parse(data)
	if err == nil && stop != nil {
		err = stop()
	}
	if err == nil {
		err = parsed.SetNamespace(namespace)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	for _, p := range parsed.Pods {
		Default(p)
	}
	errs, warnings = Validate(&parsed)
	return &parsed, errs, warnings, nil
}

// Parse reads one or several YAML or JSON documents, strictly: a field that v1 does not have, a
// field that is given twice and a value of the wrong type are errors. Documents without content are
// skipped. What a cluster wrote into an object (its status, UID, owners, ...) is taken out.
// Defaults are not filled in and nothing is validated: see [Manifest.SetNamespace], [Default] and
// [Validate], to be called in this order.
//
// The error has the kind Invalid; [ProblemsOf] lists everything it found.
func Parse(data []byte) (Manifest, error) {
	var m Manifest
	if err := podapi.CheckManifestSize(data); err != nil {
		return m, err
	}
	docs, err := splitDocuments(string(data))
	if err != nil {
		return m, err
	}
	p := parser{manifest: &m}
	for _, d := range docs {
		if p.document(d, len(docs) > 1); p.nodes > maxTreeNodes {
			break // it has said so
		}
	}
	switch {
	case len(p.problems) > 0:
		return m, WithKind(Invalid, &invalidError{problems: boundProblems(p.problems, p.more)})
	case len(m.Pods)+len(m.ConfigMaps)+len(m.Secrets) == 0:
		return m, Errorf(Invalid, "cannot read the manifest: there is no Pod, ConfigMap or Secret in it")
	}
	return m, nil
}

// parser collects the objects and the problems of a manifest.
type parser struct {
	manifest *Manifest
	problems []Problem
	more     int // problems that are not in the list
	objects  int
	nodes    int // values so far
}

// document reads one document. When there are several, each path begins with the number of the
// document and its first line.
func (p *parser) document(d document, several bool) {
	prefix := ""
	if several {
		prefix = fmt.Sprintf("document %d (line %d)", d.number, d.line)
	}
	tree, problem := decodeTree(d, &p.nodes)
	if problem != "" {
		p.problem(prefix, "", problem)
		return
	}
	if tree != nil {
		p.object(tree, prefix, "", true)
	}
}

// object reads one object: a document, or (with listAllowed false) an item of a List, whose path in
// the document is at.
func (p *parser) object(tree any, prefix, at string, listAllowed bool) {
	if p.objects++; p.objects > maxDocuments {
		if p.objects == maxDocuments+1 {
			p.problem(prefix, at, fmt.Sprintf("too many objects: the limit is %d", maxDocuments))
		}
		return
	}
	fields, ok := tree.(map[string]any)
	if !ok {
		p.problem(prefix, at, "must be an object with apiVersion, kind and metadata, not "+typeName(tree))
		return
	}
	version, ok1 := fields["apiVersion"].(string)
	kind, ok2 := fields["kind"].(string)
	switch {
	case !ok2 || kind == "":
		p.problem(prefix, joinPath(at, "kind"), "is missing; it must be Pod, ConfigMap, Secret or List")
	case !ok1 || version == "":
		p.problem(prefix, joinPath(at, "apiVersion"), "is missing; it must be v1")
	case kind == "List" && version == "v1" && listAllowed:
		p.list(fields, prefix)
	case version != "v1" || kind == "List" || !p.typed(kind, fields, prefix, at):
		p.problem(prefix, joinPath(at, "kind"), fmt.Sprintf("%s is not supported here; Pod, ConfigMap, Secret and a List of them (apiVersion v1) are", shown(version+" "+kind)))
	}
}

// list reads the items of a List; a List inside a List is refused, as it never occurs and could be
// nested without end.
func (p *parser) list(fields map[string]any, prefix string) {
	for _, key := range sortedKeys(fields) {
		switch key {
		case "apiVersion", "kind", "metadata", "items":
		default:
			p.problem(prefix, joinPath("", key), "unknown field of a List")
		}
	}
	items, ok := fields["items"].([]any)
	if !ok && fields["items"] != nil {
		p.problem(prefix, "items", "must be a list, not "+typeName(fields["items"]))
	}
	for i, item := range items {
		p.object(item, prefix, fmt.Sprintf("items[%d]", i), false)
	}
}

// typed reads an object of a known kind; it says whether the kind is one.
func (p *parser) typed(kind string, fields map[string]any, prefix, at string) bool {
	var target any
	switch kind {
	case "Pod":
		target = new(corev1.Pod)
	case "ConfigMap":
		target = new(corev1.ConfigMap)
	case "Secret":
		target = new(corev1.Secret)
	default:
		return false
	}
	found := decodeInto(fields, target, at)
	for _, f := range found {
		p.problem(prefix, f.Path, f.Message)
	}
	if len(found) > 0 {
		return true
	}
	switch o := target.(type) {
	case *corev1.Pod:
		p.takeOut(&o.ObjectMeta, &o.Status)
		p.manifest.Pods = append(p.manifest.Pods, o)
	case *corev1.ConfigMap:
		p.takeOut(&o.ObjectMeta, nil)
		p.manifest.ConfigMaps = append(p.manifest.ConfigMaps, o)
	case *corev1.Secret:
		p.takeOut(&o.ObjectMeta, nil)
		foldStringData(o)
		p.manifest.Secrets = append(p.manifest.Secrets, o)
	}
	return true
}

func (p *parser) problem(prefix, path, message string) {
	if len(p.problems) >= maxProblems {
		p.more++
		return
	}
	if prefix != "" && path != "" {
		prefix += ": "
	}
	p.problems = append(p.problems, Problem{Severity: SeverityError, Path: prefix + cleanPath(path), Message: message})
}

// foldStringData moves stringData into data, where it wins, as the API server does.
func foldStringData(s *corev1.Secret) {
	if len(s.StringData) == 0 {
		return
	}
	if s.Data == nil {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for k, v := range s.StringData {
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}

// SetNamespace fills in the namespace of each object that names none: ns, or [DefaultNamespace]
// when ns is empty. An object that names another one than a given ns is an error of kind Invalid;
// nothing is changed then.
func (m *Manifest) SetNamespace(ns string) error {
	if ns != "" {
		if err := ValidateNamespace(ns); err != nil {
			return err
		}
	}
	var fields []*string
	for _, o := range m.objects() {
		if have := o.meta.Namespace; have != "" && ns != "" && have != ns {
			return Errorf(Invalid, "cannot use namespace %s: the %s %s is in namespace %s (metadata.namespace); name that one, or remove it from the manifest",
				ns, o.kind, shown(o.meta.Name), shown(have))
		}
		fields = append(fields, &o.meta.Namespace)
	}
	if ns == "" {
		ns = DefaultNamespace
	}
	for _, f := range fields {
		if *f == "" {
			*f = ns
		}
	}
	return nil
}

// document is one document of a manifest.
type document struct {
	number int // from 1, empty ones counted
	line   int // of its first line in the file, from 1
	text   string
}

// splitDocuments cuts data at the lines that begin with "---" (YAML 1.2, 9.1.2) or are "...";
// documents without content are left out. Inside a block scalar or a quoted text such a line ends
// the document too, as the YAML specification says.
func splitDocuments(data string) ([]document, error) {
	data = strings.TrimPrefix(data, "\ufeff")
	var docs []document
	var text strings.Builder
	number, first, line := 1, 1, 0
	flush := func() {
		if hasContent(text.String()) {
			docs = append(docs, document{number: number, line: first, text: text.String()})
			number++
		}
		text.Reset()
	}
	for l := range strings.Lines(data) {
		line++
		bare := strings.TrimRight(l, " \t\r\n")
		rest, marker := strings.CutPrefix(bare, "---")
		switch {
		case bare == "...":
			flush()
			first = line + 1
		case marker && (rest == "" || rest[0] == ' ' || rest[0] == '\t'):
			flush()
			first = line
			// What follows the marker on its line belongs to the document; the blanks keep the
			// columns right.
			text.WriteString("   " + l[3:])
			if !hasContent(rest) {
				first = line + 1
				text.Reset()
			}
		default:
			text.WriteString(l)
		}
		if len(docs) > maxDocuments {
			return nil, Errorf(Invalid, "cannot read the manifest: it has more than %d documents", maxDocuments)
		}
	}
	flush()
	return docs, nil
}

// hasContent says whether a document says anything: a line that is not blank, a comment or a directive.
func hasContent(text string) bool {
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' && l[0] != '%' {
			return true
		}
	}
	return false
}
