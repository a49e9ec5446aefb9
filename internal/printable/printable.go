package printable

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// safe says whether r shows as itself. An invalid byte is no rune: see [plain].
func safe(r rune) bool {
	switch {
	case ' ' <= r && r < 0x7f:
		return true
	case r == 0x200c, r == 0x200d: // the joiners: scripts and emoji need them, and no terminal acts on them
		return true
	case r&0xfffe == 0xfffe: // noncharacters, which YAML does not allow
		return false
	}
	return !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// plain says whether all of s shows as itself.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !safe(r) })
}

// appendRune appends r as it is, or escaped; size is the number of its bytes, and first the first
// of them.
func appendRune(b []byte, r rune, size int, first byte) []byte {
	switch {
	case r == utf8.RuneError && size <= 1:
		return append(b, '\\', 'x', hex[first>>4], hex[first&15])
	case safe(r):
		return utf8.AppendRune(b, r)
	}
	quoted := strconv.AppendQuoteRune(nil, r)
	return append(b, quoted[1:len(quoted)-1]...)
}

const hex = "0123456789abcdef"

// Text escapes all of s that does not show as itself, newlines and tabs too.
func Text(s string) string {
	if plain(s) {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		b = appendRune(b, r, size, s[i])
		i += size
	}
	return string(b)
}

// Line is [Text] with each run of white space as one blank.
func Line(s string) string { return Text(strings.Join(strings.Fields(s), " ")) }

// Cut is [Line] with at most limit bytes.
func Cut(s string, limit int) string {
	// What is cut off need not be looked at: a byte becomes a byte or more, but for white space.
	if s = Line(s[:min(len(s), 4*limit)]); len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return strings.TrimSpace(s[:limit])
}

// JSON escapes, within the strings of a JSON text, all that does not show as itself. The value
// stays the same.
func JSON(text []byte) []byte {
	s := string(text)
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case safe(r) || r == '\n' || r == '\t': // the latter are between values only
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = appendUnicode(appendUnicode(b, high), low)
		default:
			b = appendUnicode(b, r)
		}
		i += size
	}
	return b
}

func appendUnicode(b []byte, r rune) []byte {
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
