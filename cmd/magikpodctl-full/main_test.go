package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/magikrun/magikpod/dbus"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/tests/testwasm"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"magikpodctl": func() { os.Exit(run()) }})
}

type allow struct{}

func (allow) Check(context.Context, string, dbus.Action, bool) error { return nil }

// TestScripts runs the real program against the real server on a bus of its own, with a daemon in
// memory behind it.
func TestScripts(t *testing.T) {
	guest := testwasm.Guest(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			for name, module := range map[string][]byte{"guest": guest, "trap": testwasm.Trap(), "component": testwasm.Component(), "nothing": testwasm.Function("_start")} {
				if err := os.WriteFile(filepath.Join(e.WorkDir, name+".wasm"), module, 0o644); err != nil {
					return err
				}
			}
			address := bustest.Start(t)
			backend := fakepods.New()
			s, err := dbus.Serve(context.Background(), backend, dbus.ServerOptions{Address: address, Authorizer: allow{}})
			if err != nil {
				return err
			}
			e.Defer(func() { _ = s.Close(); backend.Close() })
			e.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
			return nil
		},
	})
}
