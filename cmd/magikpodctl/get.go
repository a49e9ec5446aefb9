package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func getCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "get POD", Short: "Print a pod as Kubernetes would, with its status", Args: podArg, ValidArgsFunction: a.completePods,
		Example: `  magikpodctl get web
  magikpodctl get production/web -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, path, err := a.podOf(cmd.Context(), args)
			if err != nil {
				return err
			}
			if a.output == "name" {
				s, err := c.Summary(cmd.Context(), path)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.out, s.Ref)
				return err
			}
			text, err := c.Manifest(cmd.Context(), path)
			if err != nil {
				return err
			}
			if a.output != "json" {
				a.output = "yaml"
			}
			return a.printValue(json.RawMessage(text))
		},
	}
}
