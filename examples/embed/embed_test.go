package embed_test

import (
	"os"
	"strings"
	"testing"
)

// TestREADME: what the README shows is what runs here.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(source), "\nfunc Example() {\n")
	code, _, ok := strings.Cut(code, "\t// Output:\n")
	if !ok {
		t.Fatal("example_test.go has no Example with an output")
	}
	var shown strings.Builder
	shown.WriteString("```go\n")
	for line := range strings.Lines(code) {
		shown.WriteString(strings.TrimPrefix(line, "\t"))
	}
	shown.WriteString("```\n")
	if !strings.Contains(string(readme), shown.String()) {
		t.Errorf("README.md does not show the example as it is:\n%s", shown.String())
	}
}
