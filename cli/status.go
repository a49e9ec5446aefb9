package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/printable"
)

func statusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status POD", Short: "Show how a pod is doing, and what happened to it", Args: podArg, ValidArgsFunction: a.completePods,
		RunE: a.withPod(func(ctx context.Context, c *client.Client, path godbus.ObjectPath) error {
			s, err := c.Summary(ctx, path)
			if err != nil {
				return err
			}
			events, err := c.Events(ctx, path)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.printValue(map[string]any{"pod": s, "events": events})
			}
			p := func(key, format string, v ...any) {
				_, _ = fmt.Fprintf(a.out, "%-10s %s\n", key+":", printable.Text(fmt.Sprintf(format, v...)))
			}
			p("Pod", "%s", s.Ref)
			p("UID", "%s", s.UID)
			p("Status", "%s (%s), %d/%d containers ready, %d restarts", s.State, s.Phase, s.Ready, s.Total, s.Restarts)
			p("Class", "%s", s.Class)
			p("IP", "%s", orNone(strings.Join(s.IPs, ", ")))
			p("Created", "%s (%s ago)", s.Created.Format(time.RFC3339), age(s.Created))
			p("Slice", "%s", s.Slice)
			_, _ = fmt.Fprintln(a.out, "Events:")
			var rows [][]string
			for _, e := range events {
				rows = append(rows, []string{"  " + age(e.Time), e.Type, e.Reason, orNone(e.Container), printable.Line(e.Message)})
			}
			return printTable(a.out, []string{"  AGE", "TYPE", "REASON", "CONTAINER", "MESSAGE"}, rows)
		}),
	}
}
