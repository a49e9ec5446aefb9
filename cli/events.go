package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/internal/printable"
)

func eventsCommand(a *app) *cobra.Command {
	var follow, all bool
	cmd := &cobra.Command{
		Use: "events", Short: "Print what happened to pods", Args: noArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			events := make(chan podapi.Event, 4096)
			if follow {
				c.OnSignal(func(s client.Signal) {
					if e, ok := s.Event(); ok {
						select {
						case events <- e:
						default: // who reads that slowly misses some
						}
					}
				})
				if err := c.Subscribe(ctx); err != nil {
					return err
				}
			}
			pods, err := a.list(ctx, c, all)
			if err != nil {
				return err
			}
			for _, p := range pods {
				old, err := c.Events(ctx, contract.PodPath(p.UID))
				if errkind.KindOf(err) == errkind.NotFound {
					continue // gone since
				}
				if err != nil {
					return err
				}
				for _, e := range old {
					e.Object = p.Ref
					a.printEvent(e)
				}
			}
			for follow {
				select {
				case e := <-events:
					if all || e.Object.Namespace == a.ownNamespace() {
						a.printEvent(e)
					}
				case <-ctx.Done():
					return ctx.Err()
				case <-c.Lost():
					return errkind.Errorf(errkind.Unavailable, "cannot follow the events: the connection to the bus was lost")
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing new events")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	return cmd
}

func (a *app) printEvent(e podapi.Event) {
	line := fmt.Sprintf("%s  %-7s  %s  %s/%s  %s  %s", e.Time.Format(time.RFC3339), e.Type, e.Reason,
		e.Object.Namespace, e.Object.Name, orNone(e.Container), printable.Line(e.Message))
	_, _ = fmt.Fprintln(a.out, printable.Text(line))
}
