package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	goruntime "runtime"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/magikrun/magikpod/internal/printable"
)

// NewLogger returns a logger that writes to the journal when stderr is connected to it
// ($JOURNAL_STREAM, systemd.exec(5)), with the attributes as fields, and text to stderr otherwise.
func NewLogger(stderr io.Writer, level slog.Leveler) *slog.Logger {
	if ok, err := journal.StderrIsJournalStream(); err == nil && ok {
		return slog.New(&journalHandler{level: level})
	}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
}

// journalHandler writes records in the journal's native protocol. The message is one line that
// shows as itself, whatever a registry, guest or container said; the fields are as they were.
type journalHandler struct {
	level  slog.Leveler
	fields map[string]string
	prefix string
	text   string // attributes that are shown in the message
}

// Enabled implements slog.Handler.
func (h *journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

// Handle implements slog.Handler.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	next := h.with(nil)
	r.Attrs(func(a slog.Attr) bool {
		next.add(a)
		return true
	})
	fields := next.fields
	if r.PC != 0 {
		frame, _ := goruntime.CallersFrames([]uintptr{r.PC}).Next()
		fields["CODE_FILE"], fields["CODE_LINE"], fields["CODE_FUNC"] = frame.File, strconv.Itoa(frame.Line), frame.Function
	}
	fields["SYSLOG_IDENTIFIER"] = "magikpodd"
	return journal.Send(printable.Line(r.Message+next.text), priority(r.Level), fields)
}

// WithAttrs implements slog.Handler.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler { return h.with(attrs) }

// WithGroup implements slog.Handler.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	next := h.with(nil)
	if name != "" {
		next.prefix += name + "_"
	}
	return next
}

func (h *journalHandler) with(attrs []slog.Attr) *journalHandler {
	next := &journalHandler{level: h.level, fields: maps.Clone(h.fields), prefix: h.prefix, text: h.text}
	if next.fields == nil {
		next.fields = make(map[string]string)
	}
	for _, a := range attrs {
		next.add(a)
	}
	return next
}

// add makes a field of an attribute. Those that are not magikpod's own fields are also shown behind
// the message: people read that.
func (h *journalHandler) add(a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		for _, inner := range value.Group() {
			inner.Key = a.Key + "_" + inner.Key
			h.add(inner)
		}
		return
	}
	name := fieldName(h.prefix + a.Key)
	text := value.String()
	if name == "" || text == "" {
		return
	}
	h.fields[name] = text
	switch {
	case strings.HasPrefix(name, "MAGIKPOD_"), name == "MESSAGE_ID":
	case name == "ERROR":
		h.text += ": " + text
	default:
		h.text += fmt.Sprintf(" %s=%s", a.Key, text)
	}
}

// fieldName makes the name of a journal field: upper case letters, digits and underscores, not
// beginning with one of the latter.
func fieldName(key string) string {
	upper := bytes.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_':
			return r
		}
		return '_'
	}, []byte(key))
	return strings.TrimLeft(string(upper), "_0123456789")
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
