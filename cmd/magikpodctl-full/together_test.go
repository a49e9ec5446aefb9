package main

import (
	"context"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/magikrun/magikpod/dbus"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
)

// TestDeleteTogether deletes three pods of which none goes before all have been asked to.
func TestDeleteTogether(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/together",
		Setup: func(e *testscript.Env) error {
			address := bustest.Start(t)
			backend := fakepods.New()
			var asked sync.WaitGroup
			asked.Add(3)
			backend.Hold = func(kind string) {
				if kind == "delete" {
					asked.Done()
					asked.Wait()
				}
			}
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
