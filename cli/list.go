package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/errkind"
)

func listCommand(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ps"}, Short: "List pods", Args: noArgs,
		Example: `  magikpodctl list
  magikpodctl list --all-namespaces -o wide`,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			pods, err := a.list(ctx, c, all)
			if err != nil {
				return err
			}
			if a.structured() {
				list := map[string]any{"apiVersion": "v1", "kind": "List", "items": []any{}}
				items := []any{}
				for _, p := range pods {
					text, err := c.Manifest(ctx, contract.PodPath(p.UID))
					if errkind.KindOf(err) == errkind.NotFound {
						continue // gone since
					}
					if err != nil {
						return err
					}
					items = append(items, json.RawMessage(text))
				}
				list["items"] = items
				return a.printValue(list)
			}
			var rows [][]string
			for _, p := range pods {
				if a.output == "name" {
					if _, err := fmt.Fprintln(a.out, p.Ref); err != nil {
						return err
					}
					continue
				}
				row := []string{p.Namespace, p.Name, fmt.Sprintf("%d/%d", p.Ready, p.Total), p.State, strconv.Itoa(p.Restarts), age(p.Created)}
				if a.output == "wide" {
					row = append(row, orNone(strings.Join(p.IPs, ",")), p.Class, p.Slice)
				}
				rows = append(rows, row)
			}
			if a.output == "name" {
				return nil
			}
			head := []string{"NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"}
			if a.output == "wide" {
				head = append(head, "IP", "CLASS", "SLICE")
			}
			return printTable(a.out, head, rows)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	return cmd
}
