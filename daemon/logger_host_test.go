package daemon

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/internal/printable"
	"github.com/magikrun/magikpod/tests/host"
)

// The daemon's own entries are one line each, and do nothing to a terminal, whatever others have said.
func TestLogJournalRealLogger(t *testing.T) {
	host.DialJournal(t)
	id := string(uuid.NewUUID())
	log := slog.New(&journalHandler{level: slog.LevelInfo}).With("MAGIKPOD_POD_UID", id)
	log.Error("cannot pull "+fakepods.Text, "error", errors.New(fakepods.Text), "image", fakepods.Text)
	got := host.ReadJournal(t, "--output=cat", "MAGIKPOD_POD_UID="+id)
	if want := printable.Line("cannot pull "+fakepods.Text+": "+fakepods.Text+" image="+fakepods.Text) + "\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if strings.Count(got, "\n") != 1 || strings.Contains(got, "\x1b") {
		t.Errorf("%q is more than a line, or holds ESC", got)
	}
}
