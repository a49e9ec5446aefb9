package pod

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The bounds of one document after its aliases are expanded. They are what a manifest of the greatest size needs without any alias, with room to spare;
// the YAML library itself bounds only the number of its steps, not the bytes that a repeated alias of a long text makes.
const (
	maxTreeBytes = 4 * MaxManifestBytes
	maxTreeNodes = MaxManifestBytes
	maxTreeDepth = 100
)

// yamlLine is how the YAML library words a position.
var yamlLine = regexp.MustCompile(`line (\d+): `)

// decodeTree reads one document of YAML 1.1 (of which JSON is a part) into nil, bool, int64, uint64, float64, string, []any and map[string]any.
// problem is why it cannot, in one line.
func decodeTree(d document) (tree any, problem string) {
	defer func() {
		// The library turns its own panics into errors; this guards the daemon against one that it misses.
		if r := recover(); r != nil {
			tree, problem = nil, shown(fmt.Sprintf("is not valid YAML: %v", r))
		}
	}()
	var raw any
	if err := yaml.UnmarshalStrict([]byte(d.text), &raw); err != nil {
		return nil, yamlProblem(err, d.line)
	}
	n := normaliser{}
	tree = n.value(raw, "", 0)
	return tree, n.problem
}

// yamlProblem words an error of the YAML library in one line, with line numbers of the whole file.
func yamlProblem(err error, first int) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n")
	text = yamlLine.ReplaceAllStringFunc(text, func(m string) string {
		n, _ := strconv.Atoi(yamlLine.FindStringSubmatch(m)[1])
		return fmt.Sprintf("line %d: ", n+first-1)
	})
	var parts []string
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if field, ok := strings.CutSuffix(l, " already set in map"); ok {
			l = strings.Replace(field, "key ", "field ", 1) + " is given twice"
		}
		if l != "" {
			parts = append(parts, l)
		}
	}
	text = strings.Join(parts, "; ")
	if strings.Contains(text, "is given twice") {
		return shown(text)
	}
	return shown("is not valid YAML: " + text)
}

// normaliser makes the YAML library's values JSON's, within bounds.
type normaliser struct {
	bytes, nodes int
	problem      string // the first one
}

func (n *normaliser) fail(path, format string, args ...any) any {
	if n.problem == "" {
		n.problem = fmt.Sprintf(format, args...)
		if path != "" {
			n.problem = cleanPath(path) + ": " + n.problem
		}
	}
	return nil
}

func (n *normaliser) value(v any, path string, depth int) any {
	n.nodes++
	if n.problem != "" {
		return nil
	}
	if n.nodes > maxTreeNodes || n.bytes > maxTreeBytes {
		return n.fail("", "is too large when its aliases are written out")
	}
	if depth > maxTreeDepth {
		return n.fail("", "is nested more than %d levels deep", maxTreeDepth)
	}
	switch v := v.(type) {
	case nil, bool, int64, uint64:
		return v
	case int:
		return int64(v)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return n.fail(path, "%v is not a number that can be used here", v)
		}
		return v
	case string:
		n.bytes += len(v)
		return v
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = n.value(item, fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
		return list
	case map[any]any:
		return n.object(v, path, depth)
	default:
		return n.fail(path, "a value of type %T cannot be used here", v)
	}
}

func (n *normaliser) object(v map[any]any, path string, depth int) any {
	fields := make(map[string]any, len(v))
	for k, item := range v {
		var key string
		switch k := k.(type) {
		case string:
			key = k
		case bool, int, int64, uint64, float64:
			key = fmt.Sprint(k)
		default:
			return n.fail(path, "the name of a field must be a text, not %s", typeName(k))
		}
		if _, ok := fields[key]; ok {
			return n.fail(joinPath(path, key), "is given twice")
		}
		n.bytes += len(key)
		fields[key] = n.value(item, joinPath(path, key), depth+1)
	}
	return fields
}

// decodeInto decodes fields into target, a pointer to an API object. It returns every unknown field and every wrong type, with paths below at.
func decodeInto(fields map[string]any, target any, at string) []Problem {
	var c typeChecker
	c.check(fields, reflect.TypeOf(target).Elem(), at)
	if len(c.found) > 0 {
		return c.found
	}
	data, err := json.Marshal(fields)
	if err == nil {
		err = json.Unmarshal(data, target)
	}
	if err != nil {
		return []Problem{{Path: at, Message: shown(err.Error())}}
	}
	return nil
}

// typeChecker compares a tree with a Go type, by the rules of encoding/json, but with exact names.
type typeChecker struct {
	found []Problem
}

func (c *typeChecker) add(path, format string, args ...any) {
	if len(c.found) < 100 {
		c.found = append(c.found, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
}

var (
	quantityType    = reflect.TypeFor[resource.Quantity]()
	intOrStringType = reflect.TypeFor[intstr.IntOrString]()
	unmarshalerType = reflect.TypeFor[json.Unmarshaler]()
)

func (c *typeChecker) check(v any, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case v == nil: // null is as good as absent
	case t == quantityType:
		c.quantity(v, path)
	case t == intOrStringType:
		if s, ok := v.(string); !ok || len(s) > 256 {
			c.integer(v, reflect.TypeFor[int32](), path, "a whole number or a name")
		}
	case reflect.PointerTo(t).Implements(unmarshalerType):
		data, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(data, reflect.New(t).Interface())
		}
		if err != nil {
			c.add(path, "%s", shown(err.Error()))
		}
	default:
		c.plain(v, t, path)
	}
}

func (c *typeChecker) plain(v any, t reflect.Type, path string) {
	switch t.Kind() {
	case reflect.Struct:
		c.object(v, t, path)
	case reflect.Map:
		fields, ok := v.(map[string]any)
		if !ok {
			c.wrong(v, path, "an object")
		}
		for _, k := range sortedKeys(fields) {
			c.check(fields[k], t.Elem(), path+"["+k+"]")
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			c.base64(v, path)
			return
		}
		list, ok := v.([]any)
		if !ok {
			c.wrong(v, path, "a list")
		}
		for i, item := range list {
			c.check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.String:
		if _, ok := v.(string); !ok {
			c.wrong(v, path, "a text")
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			c.wrong(v, path, "true or false")
		}
	default:
		c.integer(v, t, path, "a whole number")
	}
}

func (c *typeChecker) wrong(v any, path, want string) {
	hint := ""
	switch v.(type) {
	case bool, int64, uint64, float64:
		if want == "a text" {
			hint = " (put it in quotes)"
		}
	}
	c.add(path, "must be %s, not %s%s", want, typeName(v), hint)
}

func (c *typeChecker) object(v any, t reflect.Type, path string) {
	fields, ok := v.(map[string]any)
	if !ok {
		c.wrong(v, path, "an object")
		return
	}
	known := make(map[string]reflect.Type)
	jsonFields(t, known)
	for _, name := range sortedKeys(fields) {
		if ft, ok := known[name]; ok {
			c.check(fields[name], ft, joinPath(path, name))
			continue
		}
		hint := ""
		for _, k := range slices.Sorted(maps.Keys(known)) {
			if strings.EqualFold(k, name) || k == name+"s" || k+"s" == name {
				hint = "; did you mean " + k + "?"
			}
		}
		c.add(joinPath(path, name), "unknown field%s", hint)
	}
}

// jsonFields collects the fields of t by their JSON names, those of embedded structs included.
func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && f.Anonymous:
			jsonFields(f.Type, into)
		default:
			into[name] = f.Type
		}
	}
}

func (c *typeChecker) integer(v any, t reflect.Type, path, want string) {
	var n int64
	switch v := v.(type) {
	case int64:
		n = v
	case float64, uint64:
		c.add(path, "must be %s that fits, not %v", want, v)
		return
	default:
		c.wrong(v, path, want)
		return
	}
	if !t.ConvertibleTo(reflect.TypeFor[int64]()) || reflect.Zero(t).CanInt() && reflect.Zero(t).OverflowInt(n) {
		c.add(path, "%d is out of range", n)
	}
}

// quantityExponent finds the digits of a decimal exponent, without leading zeros.
var quantityExponent = regexp.MustCompile(`[eE][+-]?0*([0-9]+)$`)

func (c *typeChecker) quantity(v any, path string) {
	text := ""
	switch v := v.(type) {
	case string:
		text = v
	case int64, uint64, float64:
		text = fmt.Sprint(v)
	default:
		c.wrong(v, path, "a quantity such as 500m or 128Mi")
		return
	}
	// The library computes with arbitrary precision: some digits of an exponent would keep it busy for hours.
	if m := quantityExponent.FindStringSubmatch(text); len(text) > 64 || m != nil && len(m[1]) > 2 {
		c.add(path, "must be a quantity such as 500m or 128Mi, not %s", shown(text))
		return
	}
	if _, err := resource.ParseQuantity(text); err != nil {
		c.add(path, "must be a quantity such as 500m or 128Mi, not %q", text)
	}
}

func (c *typeChecker) base64(v any, path string) {
	s, ok := v.(string)
	if !ok {
		c.wrong(v, path, "a text in base64")
		return
	}
	if _, err := base64.StdEncoding.DecodeString(s); err != nil {
		c.add(path, "is not valid base64 (plain text goes into stringData of a Secret, or data of a ConfigMap)")
	}
}

// typeName names the type of a value of a tree as its author would.
func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case string:
		return "a text"
	case []any:
		return "a list"
	case map[string]any, map[any]any:
		return "an object"
	default:
		return "a number"
	}
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

func joinPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
