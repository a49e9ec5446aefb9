package cli

import (
	"context"
	"os"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/podapi"
)

// closeWhenDone closes f when ctx ends, so that a read from it returns.
func closeWhenDone(ctx context.Context, f *os.File) (stop func()) {
	cancel := context.AfterFunc(ctx, func() { _ = f.Close() })
	return func() {
		cancel()
		_ = f.Close()
	}
}

// graceFlag is a --grace in seconds or as a duration; nil when it was not given.
func graceFlag(cmd *cobra.Command, d time.Duration) (*time.Duration, error) {
	if !cmd.Flags().Changed("grace") {
		return nil, nil
	}
	if d < 0 || d > podapi.MaxGracePeriod {
		return nil, Usagef("--grace %s: must be 0s to %s", d, podapi.MaxGracePeriod)
	}
	return &d, nil
}

func startCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "start POD...", Short: "Start stopped pods", Args: someArgs, ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachPod(cmd.Context(), args, func(c *client.Client, path godbus.ObjectPath) (godbus.ObjectPath, error) {
				return c.Start(cmd.Context(), path)
			})
		},
	}
}

func stopCommand(a *app) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "stop POD...", Short: "Stop pods; they stay and can be started again", Args: someArgs, ValidArgsFunction: a.completePods,
		Example: `  magikpodctl stop web
  magikpodctl stop --grace 2s web db`,
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := graceFlag(cmd, grace)
			if err != nil {
				return err
			}
			return a.eachPod(cmd.Context(), args, func(c *client.Client, path godbus.ObjectPath) (godbus.ObjectPath, error) {
				return c.Stop(cmd.Context(), path, g)
			})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 0, "the grace period, such as 5s, instead of the manifest's")
	return cmd
}

func restartCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "restart POD...", Short: "Stop pods and start them again", Args: someArgs, ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachPod(cmd.Context(), args, func(c *client.Client, path godbus.ObjectPath) (godbus.ObjectPath, error) {
				return c.Restart(cmd.Context(), path)
			})
		},
	}
}
