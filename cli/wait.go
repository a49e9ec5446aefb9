package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
)

func waitCommand(a *app) *cobra.Command {
	var until string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait POD --for ready|completed|deleted", Short: "Wait until a pod is ready, has completed or is gone", Args: podArg,
		ValidArgsFunction: a.completePods,
		Example: `  magikpodctl wait web --for ready --timeout 30s
  magikpodctl wait batch --for completed`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch until {
			case "ready", "completed", "deleted":
			default:
				return Usagef("unknown --for %q: use ready, completed or deleted", until)
			}
			ctx := cmd.Context()
			name, err := a.onePod(ctx, args)
			if err != nil {
				return err
			}
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, errkind.Errorf(errkind.Unavailable, "pod %s is not %s after %s", name, until, timeout))
				defer cancel()
			}
			return a.wait(ctx, name, until)
		},
	}
	cmd.Flags().StringVar(&until, "for", "ready", "ready, completed or deleted")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "wait at most this long; 0: for ever")
	return cmd
}

// wait looks at the pod each time that something of it has changed. It subscribes first, so that no
// change is missed.
func (a *app) wait(ctx context.Context, arg, until string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	c.OnSignal(func(client.Signal) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err := c.Subscribe(ctx); err != nil {
		return err
	}
	_, path, err := a.pod(ctx, arg)
	for {
		var s podapi.Summary
		if err == nil {
			s, err = c.Summary(ctx, path)
		}
		switch {
		case until == "deleted" && errkind.KindOf(err) == errkind.NotFound:
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case until == "ready" && s.Phase == "Running" && s.Total > 0 && s.Ready == s.Total:
			return nil
		case until == "completed" && s.Phase == "Succeeded":
			return nil
		case until != "deleted" && s.Phase == "Failed", until == "ready" && s.Phase == "Succeeded":
			return errkind.Errorf(errkind.Conflict, "pod %s cannot become %s any more: it is %s", s.Ref, until, s.Phase)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.Lost():
			return errkind.Errorf(errkind.Unavailable, "cannot wait: the connection to the bus was lost")
		}
	}
}
