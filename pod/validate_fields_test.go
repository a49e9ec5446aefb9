package pod

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestEveryField sets each field of the API, one at a time, and wants it to be reported, unless
// testdata/honoured.txt says who honours it. A new version of k8s.io/api fails here when it brings
// a field that nobody has thought of.
func TestEveryField(t *testing.T) {
	w := fieldWalker{t: t, honoured: honouredFields(t), seen: map[reflect.Type]bool{}, used: map[string]bool{}}
	container := corev1.Container{Name: "a", Image: "a:1"}
	pod := func() any {
		return &corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Name: "a"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{container}},
		}
	}
	// Containers come first: init containers, of the same type, may do less.
	w.walk(pod, reflect.TypeFor[corev1.Container](), "spec.containers[0]", func(object reflect.Value) reflect.Value {
		return object.FieldByName("Spec").FieldByName("Containers").Index(0)
	})
	w.walk(pod, reflect.TypeFor[corev1.Pod](), "", self)
	w.walk(func() any {
		return &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	}, reflect.TypeFor[corev1.ConfigMap](), "", self)
	w.walk(func() any {
		return &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	}, reflect.TypeFor[corev1.Secret](), "", self)
	for _, name := range slices.Sorted(maps.Keys(w.honoured)) {
		if !w.used[name] {
			t.Errorf("testdata/honoured.txt lists %s, which is no field of the API", name)
		}
	}
	if len(w.used) < 150 {
		t.Errorf("only %d honoured fields were seen: the walk is broken", len(w.used))
	}
}

// honouredFields reads TYPE.FIELD and who honours it, one a line.
func honouredFields(t *testing.T) map[string]bool {
	text, err := os.ReadFile("testdata/honoured.txt")
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#":
		case len(words) < 2:
			t.Errorf("honoured.txt: %s does not say who honours it", words[0])
		case fields[words[0]]:
			t.Errorf("honoured.txt: %s is there twice", words[0])
		default:
			fields[words[0]] = true
		}
	}
	return fields
}

type fieldWalker struct {
	t        *testing.T
	honoured map[string]bool
	seen     map[reflect.Type]bool
	used     map[string]bool
}

// place finds a struct in an object, and makes what is missing on the way there.
type place func(object reflect.Value) reflect.Value

func self(object reflect.Value) reflect.Value { return object }

// walk tries each field of the struct type t, which is at path and place in the objects that fresh
// makes.
func (w *fieldWalker) walk(fresh func() any, t reflect.Type, path string, at place) {
	if w.seen[t] {
		return
	}
	w.seen[t] = true
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		inner := func(object reflect.Value) reflect.Value { return at(object).FieldByIndex(f.Index) }
		if f.Anonymous && name == "" {
			w.walk(fresh, f.Type, path, inner)
			continue
		}
		id, fieldPath := t.Name()+"."+name, joinPath(path, name)
		if !w.honoured[id] {
			w.try(fresh, id, fieldPath, inner)
			continue
		}
		w.used[id] = true
		w.descend(fresh, f.Type, fieldPath, inner)
	}
}

// descend walks on below a field that is honoured.
func (w *fieldWalker) descend(fresh func() any, t reflect.Type, path string, at place) {
	switch {
	case t.Kind() == reflect.Pointer:
		w.descend(fresh, t.Elem(), path, func(object reflect.Value) reflect.Value {
			v := at(object)
			if v.IsNil() {
				v.Set(reflect.New(t.Elem()))
			}
			return v.Elem()
		})
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		w.descend(fresh, t.Elem(), path+"[0]", func(object reflect.Value) reflect.Value {
			v := at(object)
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(t, 1, 1))
			}
			return v.Index(0)
		})
	case t == reflect.TypeFor[metav1.ObjectMeta](), t.Kind() == reflect.Struct && t.PkgPath() == "k8s.io/api/core/v1":
		w.walk(fresh, t, path, at)
	}
}

// try sets one field, and wants it to be mentioned.
func (w *fieldWalker) try(fresh func() any, id, path string, at place) {
	object := fresh()
	fill(at(reflect.ValueOf(object).Elem()), 0)
	data, err := json.Marshal(object)
	if err != nil {
		w.t.Fatalf("%s: %v", id, err)
	}
	problems, _ := process(data, "")
	for _, p := range problems {
		if rest, ok := strings.CutPrefix(p.Path, path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return
		}
	}
	w.t.Errorf("%s (%s) is set and nobody says a word about it: honour it (and say so in testdata/honoured.txt), refuse it, or warn; reported is only:\n%s",
		id, path, fmt.Sprint(problems))
}

// fill makes a value that is not zero and whose parts are not either, down to some depth.
func fill(v reflect.Value, depth int) {
	switch x := v.Addr().Interface().(type) {
	case *metav1.Time:
		*x = metav1.Unix(1700000000, 0)
		return
	case *resource.Quantity:
		*x = resource.MustParse("1")
		return
	case *intstr.IntOrString:
		*x = intstr.FromInt32(1)
		return
	case *metav1.FieldsV1:
		x.SetRawBytes([]byte("{}"))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth)
	case reflect.Map:
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value, depth)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("x").Convert(v.Type().Key()), value)
	case reflect.Struct:
		for f, field := range v.Fields() {
			if f.IsExported() && depth < 6 {
				fill(field, depth+1)
			}
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	default:
		if v.CanInt() {
			v.SetInt(1)
		} else if v.CanUint() {
			v.SetUint(1)
		}
	}
}
