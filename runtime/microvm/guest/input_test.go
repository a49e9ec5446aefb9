package guest_test

import (
	"testing"

	"github.com/magikrun/magikpod/internal/guesttest"
)

// TestContainerInput: a container's first process has nothing to read.
func TestContainerInput(t *testing.T) {
	m := guesttest.Start(t)
	if exit, stdout, _ := outcome(t, m.Run(t, guesttest.Container(t, "b", nil, "/bin/sh", "-c", "wc -c; exit 3"))); exit.Code != 3 || stdout != "0\n" {
		t.Errorf("%+v %q", exit, stdout)
	}
}
