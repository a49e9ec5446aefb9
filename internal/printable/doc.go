// Package printable makes text of others fit for people's eyes: what a container, guest, registry
// or archive wrote must not act on the terminal that shows it.
//
// What does not show as itself is escaped as in Go's strings: \x1b is a byte of ASCII, \u009b a
// code point, \x9b a byte that is no UTF-8. That goes for control characters (ESC, and U+009B,
// which is ESC [ in one character), for format characters, which reorder or hide what is around
// them (trojansource.codes), and for Unicode's line separators. The reader of tables, messages and
// logs escapes, not the one who stores the text: an API returns what was written.
//
// Pure, below all layers.
package printable
