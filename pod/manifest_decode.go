package pod

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
)

// The bounds of a document after its aliases are expanded. They are what a manifest of the greatest
// size needs without any alias, with room to spare; the YAML library itself bounds only the number
// of its steps, not the bytes that a repeated alias of a long text makes. What it does with a
// megabyte of any text takes it 0.2 s and 100 MB; all that follows costs far more a value.
const (
	maxTreeBytes = 4 * MaxManifestBytes
	maxTreeDepth = 100

	// maxTreeNodes bounds the values of all documents together. A pod has some 40, and the greatest
	// number of objects fits.
	maxTreeNodes = 40_000
)

// yamlLine is how the YAML library words a position.
var yamlLine = regexp.MustCompile(`line (\d+): `)

// decodeTree reads one document of YAML 1.1 (of which JSON is a part) into nil, bool, int64,
// uint64, float64, string, []any and map[string]any. problem is why it cannot, in one line. nodes
// counts the values of all documents.
func decodeTree(d document, nodes *int) (tree any, problem string) {
	defer func() {
		// The library turns its own panics into errors; this guards the daemon against one that it
		// misses.
		if r := recover(); r != nil {
			tree, problem = nil, shown(fmt.Sprintf("is not valid YAML: %v", r))
		}
	}()
	var raw any
	if err := yaml.UnmarshalStrict([]byte(d.text), &raw); err != nil {
		return nil, yamlProblem(err, d.line)
	}
	n := normaliser{nodes: nodes}
	tree = n.value(raw, nil, 0)
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
	nodes   *int // of all documents
	bytes   int
	problem string // the first one
}

func (n *normaliser) fail(path *treePath, format string, args ...any) any {
	if n.problem == "" {
		n.problem = fmt.Sprintf(format, args...)
		if path != nil {
			n.problem = cleanPath(path.String()) + ": " + n.problem
		}
	}
	return nil
}

func (n *normaliser) value(v any, path *treePath, depth int) any {
	*n.nodes++
	if *n.nodes > maxTreeNodes {
		return n.fail(nil, "has too many values, or those before it: the limit is %d in one manifest", maxTreeNodes)
	}
	if n.bytes > maxTreeBytes {
		return n.fail(nil, "is too large when its aliases are written out")
	}
	if depth > maxTreeDepth {
		return n.fail(nil, "is nested more than %d levels deep", maxTreeDepth)
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
		list := make([]any, min(len(v), maxTreeNodes))
		for i, item := range v {
			if n.problem != "" {
				return nil
			}
			list[i] = n.value(item, path.index(i), depth+1)
		}
		return list
	case map[any]any:
		return n.object(v, path, depth)
	default:
		return n.fail(path, "a value of type %T cannot be used here", v)
	}
}

func (n *normaliser) object(v map[any]any, path *treePath, depth int) any {
	fields := make(map[string]any, min(len(v), maxTreeNodes))
	for k, item := range v {
		if n.problem != "" {
			return nil
		}
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
			return n.fail(path.child(key), "is given twice")
		}
		n.bytes += len(key)
		fields[key] = n.value(item, path.child(key), depth+1)
	}
	return fields
}
