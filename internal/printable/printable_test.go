package printable

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// hostile is text that acts on terminals, and how it is shown.
var hostile = []struct{ name, in, want string }{
	{"plain", "C:\\ünïcødé 漢字 👩\u200d🚒 می\u200cخواهم", "C:\\ünïcødé 漢字 👩\u200d🚒 می\u200cخواهم"},
	{"title", "\x1b]0;owned\a", `\x1b]0;owned\a`},
	{"clipboard", "\x1b]52;c;cm0gLXJmIC8=\x1b\\", `\x1b]52;c;cm0gLXJmIC8=\x1b\`},
	{"link", "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\", `\x1b]8;;http://evil\x1b\text\x1b]8;;\x1b\`},
	{"answer", "\x1b[6n\x1bP+q544e\x1b\\", `\x1b[6n\x1bP+q544e\x1b\`},
	{"C1", "\u009b2J\u009d0;x\u009c", `\u009b2J\u009d0;x\u009c`},
	{"C1 in Latin-1", "\x9b2J", `\x9b2J`},
	{"overwrite", "bad\rgood\b\bev", `bad\rgood\b\bev`},
	{"others", "\x00\x05\x0e\x7f\u0085\v\f", `\x00\x05\x0e\x7f\u0085\v\f`},
	{"bidi", "\u202egnp.exe\u2066\u200f\ufeff", `\u202egnp.exe\u2066\u200f\ufeff`},
	{"tags", "\U000e0041", `\U000e0041`},
	{"lines", "a\u2028b", `a\u2028b`},
	{"noncharacters", "\ufffe\U0001ffff", `\ufffe\U0001ffff`},
	{"no UTF-8", "\xff\xc3(\xed\xa0\x80", `\xff\xc3(\xed\xa0\x80`},
	{"colour", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
}

func TestText(t *testing.T) {
	for _, c := range hostile {
		if got := Text(c.in); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got, want := Text("a\nb\tc"), `a\nb\tc`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLine(t *testing.T) {
	if got, want := Line(" one\n\ttwo\r\n \x1b[2Jthree "), `one two \x1b[2Jthree`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"short", 5, "short"}, {"longer", 5, "longe"}, {"üüü", 5, "üü"}, {"\x1b\x1b", 5, `\x1b\`}, {"ab  cd", 3, "ab"}, {"", 3, ""}, {"x", 0, ""},
	} {
		if got := Cut(c.in, c.limit); got != c.want {
			t.Errorf("Cut(%q, %d) is %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, c := range hostile {
		text, err := json.MarshalIndent(map[string]string{c.in: c.in}, "", "    ")
		if err != nil {
			t.Fatal(err)
		}
		got := JSON(text)
		check(t, string(got), false)
		var before, after map[string]string
		if err := json.Unmarshal(text, &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &after); err != nil {
			t.Errorf("%s: %q is not JSON: %v", c.name, got, err)
		}
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s: %q has become %q", c.name, before, after)
		}
	}
}

// written is what a Writer makes of s, which it gets in pieces of n bytes.
func written(t *testing.T, s string, n int, colours bool) string {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b, colours)
	for len(s) > 0 {
		part := s[:min(n, len(s))]
		if got, err := w.Write([]byte(part)); err != nil || got != len(part) {
			t.Fatalf("Write: %d, %v", got, err)
		}
		s = s[len(part):]
		if len(w.pending) > maxColour+2 {
			t.Fatalf("%d bytes are kept", len(w.pending))
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWriter(t *testing.T) {
	for _, c := range hostile {
		for n := 1; n < 8; n++ {
			if got := written(t, c.in, n, false); got != c.want {
				t.Errorf("%s, in pieces of %d: %q, want %q", c.name, n, got, c.want)
			}
		}
	}
	if got, want := written(t, "a\n\tb\r\n", 1, false), "a\n\tb\\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWriterColours(t *testing.T) {
	for in, want := range map[string]string{
		"plain\n":                               "plain\n",
		"\x1b[31mred\x1b[0m\n":                  "\x1b[31mred\x1b[0m\n\x1b[0m",
		"\x1b[m\x1b[38:2::1;2;3mx":              "\x1b[m\x1b[38:2::1;2;3mx\x1b[0m",
		"\x1b[2J\x1b[31":                        `\x1b[2J\x1b[31`,
		"\x1b[?31mx\x1b[31 mx\x1b[>4mx":         `\x1b[?31mx\x1b[31 mx\x1b[>4mx`, // private modes, and xterm's modifyOtherKeys
		"\u009b31m":                             `\u009b31m`,
		"\x1b\x1b[1m":                           "\\x1b\x1b[1m\x1b[0m",
		"\x1b[\x1b[1m":                          "\\x1b[\x1b[1m\x1b[0m",
		"\x1b[" + strings.Repeat("1", 32) + "m": "\x1b[" + strings.Repeat("1", 32) + "m\x1b[0m",
		"\x1b[" + strings.Repeat("1", 33) + "m": `\x1b[` + strings.Repeat("1", 33) + "m",
	} {
		for n := 1; n < 40; n++ {
			if got := written(t, in, n, true); got != want {
				t.Errorf("%q in pieces of %d: %q, want %q", in, n, got, want)
			}
		}
	}
}

var colours = regexp.MustCompile(`\x1b\[[0-9;:]{0,32}m`)

// check fails when s could act on a terminal.
func check(t *testing.T, s string, withColours bool) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Errorf("%q is not UTF-8", s)
	}
	if withColours {
		s = colours.ReplaceAllString(s, "")
	}
	for _, r := range s {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029') {
			t.Errorf("%q has %q", s, r)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.in, uint8(1))
	}
	f.Fuzz(func(t *testing.T, in string, n uint8) {
		for _, got := range []string{Text(in), Line(in), Cut(in, int(n))} {
			check(t, got, false)
			if strings.ContainsAny(got, "\n\t") {
				t.Errorf("%q is more than a line", got)
			}
		}
		if got := Cut(in, int(n)); len(got) > int(n) {
			t.Errorf("%q has more than %d bytes", got, n)
		}
		size := int(n)%64 + 1
		check(t, written(t, in, size, false), false)
		got := written(t, in, size, true)
		check(t, got, true)
		if whole := written(t, in, len(in)+1, true); got != whole {
			t.Errorf("in pieces of %d bytes %q, in one %q", size, got, whole)
		}
	})
}
