package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/internal/printable"
)

func validateCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "validate -f FILE|-", Short: "Print every problem of a manifest, one a line; no daemon is needed", Args: noArgs,
		Example: `  magikpodctl validate -f web.yaml`,
		RunE: func(*cobra.Command, []string) error {
			if file == "" {
				return Usagef("which manifest? (usage: magikpodctl validate -f FILE|-)")
			}
			if a.local == nil {
				return handOver()
			}
			text, err := readFile(file)
			if err != nil {
				return err
			}
			lines, ok := a.local.Check(text, a.namespace)
			for _, line := range lines {
				if _, err := fmt.Fprintln(a.out, printable.Line(line)); err != nil {
					return err
				}
			}
			if !ok {
				return exitStatus(exitInvalid)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "the manifest; - is standard input")
	return cmd
}
