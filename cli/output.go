package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/printable"
)

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// printTable prints rows under a heading. No cell can be more than one.
func printTable(w io.Writer, head []string, rows [][]string) error {
	b := bufio.NewWriter(w) // else each cell would be a write
	t := tabwriter.NewWriter(b, 0, 8, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, cell := range r {
			cells[i] = printable.Text(cell)
		}
		_, _ = fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return errors.Join(t.Flush(), b.Flush())
}

// printValue prints v, a JSON text or anything else, as JSON or YAML. JSON can say everything in
// ASCII. YAML's encoder escapes control characters; the format characters that it leaves are
// escaped on a terminal only: in a file the value counts.
func (a *app) printValue(v any) error {
	text, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return errkind.Errorf(errkind.Internal, "cannot print the answer: %w", err)
	}
	text = printable.JSON(text)
	if a.output == "yaml" { // its reader takes no control characters
		if text, err = yaml.JSONToYAML(text); err != nil {
			return errkind.Errorf(errkind.Internal, "cannot print the answer: %w", err)
		}
		out := a.out
		if !isTerminal(a.stdout) {
			out = a.stdout
		}
		_, err = out.Write(text)
		return err
	}
	_, err = fmt.Fprintln(a.out, string(text))
	return err
}

// complain prints an error. Its lines after the first one are indented: none of them can be taken
// for a message of its own.
func (a *app) complain(err error) {
	_, _ = fmt.Fprintln(a.errOut, "magikpodctl: "+strings.ReplaceAll(strings.TrimRight(err.Error(), "\n"), "\n", "\n  "))
}

// printName prints the name of a pod or an image, one a line.
func (a *app) printName(name string) error {
	_, err := fmt.Fprintln(a.out, printable.Text(name))
	return err
}

// structured says whether -o asks for JSON or YAML.
func (a *app) structured() bool { return a.output == "json" || a.output == "yaml" }

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
