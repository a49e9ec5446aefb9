package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/internal/podapi"
)

func runCommand(a *app) *cobra.Command {
	return manifestCommand(a, "run", "Create and start the pods of a manifest", false)
}

func createCommand(a *app) *cobra.Command {
	return manifestCommand(a, "create", "Create the pods of a manifest without starting them", true)
}

func manifestCommand(a *app, name, short string, noStart bool) *cobra.Command {
	example := `  magikpodctl create -f web.yaml && magikpodctl start web`
	if !noStart {
		example = `  magikpodctl run -f web.yaml
  magikpodctl run -f web.yaml --wait ready --timeout 30s
  generate-manifest | magikpodctl run -n production -f - --replace`
	}
	var file, wait string
	var o podapi.RunOptions
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: name + " -f FILE|-", Short: short, Args: noArgs, Example: example,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return Usagef("which manifest? (usage: magikpodctl %s -f FILE|-)", name)
			}
			var err error
			if o.Wait, err = podapi.ParseWaitMode(wait); err != nil && wait != "" {
				return Usagef("unknown --wait %q: use none, started, ready or completed", wait)
			}
			if timeout < 0 {
				return Usagef("--timeout is negative")
			}
			text, err := readFile(file)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			o.Namespace, o.Timeout, o.NoStart = a.namespace, timeout, noStart
			job, err := c.Run(cmd.Context(), text, o)
			return a.job(cmd.Context(), c, job, err)
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "the manifest; - is standard input")
	cmd.Flags().BoolVar(&o.Replace, "replace", false, "delete pods of the same names first")
	if !noStart {
		cmd.Flags().StringVar(&wait, "wait", "", "until when to wait: none, started (default), ready or completed")
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "wait at most this long, such as 30s")
	return cmd
}
