package cli

import (
	"context"
	"encoding/json"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
)

func getCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "get POD", Short: "Print a pod as Kubernetes would, with its status", Args: podArg, ValidArgsFunction: a.completePods,
		Example: `  magikpodctl get web
  magikpodctl get production/web -o json`,
		RunE: a.withPod(func(ctx context.Context, c *client.Client, path godbus.ObjectPath) error {
			if a.output == "name" {
				s, err := c.Summary(ctx, path)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.out, s.Ref)
				return err
			}
			text, err := c.Manifest(ctx, path)
			if err != nil {
				return err
			}
			if a.output != "json" {
				a.output = "yaml"
			}
			return a.printValue(json.RawMessage(text))
		}),
	}
}
