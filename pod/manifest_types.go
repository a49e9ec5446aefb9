package pod

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// decodeInto decodes fields into target, a pointer to an API object. It returns every unknown field
// and every wrong type, with paths below at.
func decodeInto(fields map[string]any, target any, at string) []Problem {
	var c typeChecker
	var root *treePath
	if at != "" {
		root = root.child(at)
	}
	c.check(fields, reflect.TypeOf(target).Elem(), root)
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

func (c *typeChecker) add(path *treePath, format string, args ...any) {
	if len(c.found) <= maxProblems {
		c.found = append(c.found, Problem{Path: path.String(), Message: fmt.Sprintf(format, args...)})
	}
}

var (
	quantityType    = reflect.TypeFor[resource.Quantity]()
	intOrStringType = reflect.TypeFor[intstr.IntOrString]()
	unmarshalerType = reflect.TypeFor[json.Unmarshaler]()
)

func (c *typeChecker) check(v any, t reflect.Type, path *treePath) {
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

func (c *typeChecker) plain(v any, t reflect.Type, path *treePath) {
	switch t.Kind() {
	case reflect.Struct:
		c.object(v, t, path)
	case reflect.Map:
		fields, ok := v.(map[string]any)
		if !ok {
			c.wrong(v, path, "an object")
		}
		for _, k := range sortedKeys(fields) {
			c.check(fields[k], t.Elem(), path.key(k))
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
			c.check(item, t.Elem(), path.index(i))
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

func (c *typeChecker) wrong(v any, path *treePath, want string) {
	hint := ""
	switch v.(type) {
	case bool, int64, uint64, float64:
		if want == "a text" {
			hint = " (put it in quotes)"
		}
	}
	c.add(path, "must be %s, not %s%s", want, typeName(v), hint)
}

func (c *typeChecker) object(v any, t reflect.Type, path *treePath) {
	fields, ok := v.(map[string]any)
	if !ok {
		c.wrong(v, path, "an object")
		return
	}
	known := fieldsOf(t)
	for _, name := range sortedKeys(fields) {
		if ft, ok := known[name]; ok {
			c.check(fields[name], ft, path.child(name))
			continue
		}
		hint := ""
		if len(c.found) > maxProblems {
			return
		}
		for _, k := range slices.Sorted(maps.Keys(known)) {
			if strings.EqualFold(k, name) || k == name+"s" || k+"s" == name {
				hint = "; did you mean " + k + "?"
			}
		}
		c.add(path.child(name), "unknown field%s", hint)
	}
}

// structFields remembers the fields of each type of the API: there are some hundred.
var structFields sync.Map

// fieldsOf returns the fields of t by their JSON names.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if known, ok := structFields.Load(t); ok {
		return known.(map[string]reflect.Type)
	}
	known := make(map[string]reflect.Type)
	jsonFields(t, known)
	structFields.Store(t, known)
	return known
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

func (c *typeChecker) integer(v any, t reflect.Type, path *treePath, want string) {
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

func (c *typeChecker) quantity(v any, path *treePath) {
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
	// The library computes with arbitrary precision: some digits of an exponent would keep it busy
	// for hours.
	if m := quantityExponent.FindStringSubmatch(text); len(text) > 64 || m != nil && len(m[1]) > 2 {
		c.add(path, "must be a quantity such as 500m or 128Mi, not %s", shown(text))
		return
	}
	if _, err := resource.ParseQuantity(text); err != nil {
		c.add(path, "must be a quantity such as 500m or 128Mi, not %q", text)
	}
}

func (c *typeChecker) base64(v any, path *treePath) {
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
