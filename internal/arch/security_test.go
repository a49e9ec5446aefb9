package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testName   = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")
	scriptName = regexp.MustCompile("`e2e/([a-z0-9-]+)`")
)

// TestSecurityNamesTests: each test that docs/security.md promises exists.
func TestSecurityNamesTests(t *testing.T) {
	data, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	names := testName.FindAllStringSubmatch(page, -1)
	scripts := scriptName.FindAllStringSubmatch(page, -1)
	if len(names) < 50 || len(scripts) < 10 {
		t.Errorf("docs/security.md names %d tests and %d scripts: it has not been understood", len(names), len(scripts))
	}
	for _, name := range names {
		if !declares(t, name[1], name[2]) {
			t.Errorf("docs/security.md: package %s has no %s", name[1], name[2])
		}
	}
	for _, name := range scripts {
		one, _ := filepath.Glob("../../tests/e2e/testdata/" + name[1] + ".txtar")
		more, _ := filepath.Glob("../../tests/e2e/testdata/*/" + name[1] + ".txtar")
		if len(one)+len(more) == 0 {
			t.Errorf("docs/security.md: there is no script %s", name[1])
		}
	}
}

// declares says whether a test file of the package declares the function.
func declares(t *testing.T, pkg, function string) bool {
	files, _ := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	return slices.ContainsFunc(files, func(path string) bool {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(data), "\nfunc "+function+"(")
	})
}
