package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strconv"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
)

func classesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "classes", Short: "List the runtime classes and whether they can be used here", Args: noArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.Classes(ctx)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.printValue(list)
			}
			var rows [][]string
			for _, class := range list {
				rows = append(rows, []string{class.Name, strconv.FormatBool(class.Available), class.Reason})
			}
			return printTable(a.out, []string{"CLASS", "AVAILABLE", "DETAIL"}, rows)
		}),
	}
}

func infoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Describe the daemon and its host", Args: noArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			info, err := c.Info(ctx)
			if err != nil {
				return err
			}
			if a.output == "table" || a.output == "wide" {
				a.output = "yaml"
			}
			return a.printValue(info)
		}),
	}
}

func versionCommand(a *app) *cobra.Command {
	var own bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the daemon", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := fmt.Fprintf(a.out, "magikpodctl %s (%s)\n", a.version, runtime.Version()); err != nil || own {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			info, err := c.Info(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "magikpodd %s\n", info.Version)
			return err
		},
	}
	cmd.Flags().BoolVar(&own, "client", false, "only of this program; the daemon is not asked")
	return cmd
}

func statsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "stats POD", Short: "Print the resources that a pod uses", Args: podArg,
		Long:              "Print the resources that a pod and its containers use. A figure is null when it is not known: this host does not count it (no cgroup controller memory or pids).",
		ValidArgsFunction: a.completePods,
		RunE: a.withPod(func(ctx context.Context, c *client.Client, path godbus.ObjectPath) error {
			text, err := c.Stats(ctx, path)
			if err != nil {
				return err
			}
			return a.printValue(json.RawMessage(text))
		}),
	}
}
