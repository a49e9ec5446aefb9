package guest_test

import (
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// TestContainerTerminal: a container with a terminal and standard input, whose owner types.
func TestContainerTerminal(t *testing.T) {
	m := guesttest.Start(t)
	request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", `stty size; read a; while test "$(stty size)" != "33 44"; do sleep 0.05; done; echo "got $a"; exit 4`)
	change(t, &request, func(spec *specs.Spec) { spec.Process.Terminal = true })
	request.Stdin, request.Size = true, &wire.Size{Rows: 11, Cols: 22}
	session := m.Run(t, request)
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer typed.Close()
	sizes := make(chan wire.Size)
	var output lineBuffer
	done := make(chan wire.Exit, 1)
	go func() {
		exit, err := session.Run(t.Context(), client.IO{Stdin: in, Stdout: &output, Resize: sizes})
		if err != nil {
			t.Error(err)
		}
		done <- exit
	}()
	eventually(t, "the first size", func() bool { return output.String() == "11 22\r\n" })
	sizes <- wire.Size{Rows: 33, Cols: 44}
	if _, err := typed.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	if exit := <-done; exit.Code != 4 || !strings.Contains(output.String(), "got hello\r\n") {
		t.Errorf("%+v %q", exit, output.String())
	}
}

// TestContainerInput: without a terminal the input is a pipe that ends.
func TestContainerInput(t *testing.T) {
	m := guesttest.Start(t)
	request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", "wc -c; cat; exit 2")
	request.Stdin = true
	session := m.Run(t, request)
	var output lineBuffer
	exit, err := session.Run(t.Context(), client.IO{Stdin: fileOf(t, strings.Repeat("x", 500000)), Stdout: &output})
	if err != nil || exit.Code != 2 || output.String() != "500000\n" {
		t.Errorf("%+v %v %q", exit, err, output.String())
	}
	// Without it there is nothing to read.
	if exit, stdout, _ := outcome(t, m.Run(t, guesttest.Container(t, "b", nil, "/bin/sh", "-c", "wc -c; exit 3"))); exit.Code != 3 || stdout != "0\n" {
		t.Errorf("%+v %q", exit, stdout)
	}
}
