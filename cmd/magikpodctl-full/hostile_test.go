package main

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/magikrun/magikpod/dbus"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
)

// TestHostileText: what containers, images and registries say never acts on the terminal. The
// command `harmless [terminal] [logs] TEXT` looks at what the last command has printed, on both
// outputs, and TEXT must be in it.
func TestHostileText(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/hostile",
		Setup: func(e *testscript.Env) error {
			address := bustest.Start(t)
			backend := fakepods.New()
			s, err := dbus.Serve(context.Background(), fakepods.Hostile{Backend: backend}, dbus.ServerOptions{Address: address, Authorizer: allow{}})
			if err != nil {
				return err
			}
			e.Defer(func() { _ = s.Close(); backend.Close() })
			e.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"harmless": harmless},
	})
}

var colour = regexp.MustCompile(`\x1b\[[0-9;:]*m`)

func harmless(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	if args[0] == "terminal" { // it ends lines with \r\n
		args, text = args[1:], strings.ReplaceAll(text, "\r\n", "\n")
	}
	logs := args[0] == "logs" // whose lines are the container's, in its colours
	if logs {
		args, text = args[1:], colour.ReplaceAllString(text, "")
	}
	if !strings.Contains(text, args[0]) {
		ts.Fatalf("no %q in %q", args[0], text)
	}
	if !utf8.ValidString(text) {
		ts.Fatalf("no UTF-8: %q", text)
	}
	for _, r := range text {
		if r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Bidi_Control, unicode.Zl) {
			ts.Fatalf("%q in %q", r, text)
		}
	}
	for line := range strings.Lines(text) {
		if !logs && strings.HasPrefix(line, "magikpodctl: line") {
			ts.Fatalf("it has begun a line of its own: %q", text)
		}
	}
}
