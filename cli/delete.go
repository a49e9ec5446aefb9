package cli

import (
	"context"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/podapi"
)

func deleteCommand(a *app) *cobra.Command {
	var file string
	var all, force bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "delete POD...|-f FILE|--all", Short: "Stop pods and remove everything that belongs to them", ValidArgsFunction: a.completePods,
		Example: `  magikpodctl delete web
  magikpodctl delete -f web.yaml
  magikpodctl delete --all --grace 0s`,
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := graceFlag(cmd, grace)
			if err != nil {
				return err
			}
			if args, err = a.deleteArgs(cmd, args, file, all); err != nil {
				return err
			}
			return a.manyAtOnce(cmd.Context(), args, func(c *client.Client, path godbus.ObjectPath) (godbus.ObjectPath, error) {
				return c.Delete(cmd.Context(), path, podapi.StopOptions{Force: force, Grace: g})
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "filename", "f", "", "the pods of this manifest; - is standard input")
	f.BoolVar(&all, "all", false, "all pods of the namespace")
	f.BoolVar(&force, "force", false, "kill at once, and go on when a step fails")
	f.DurationVar(&grace, "grace", 0, "the grace period, such as 5s, instead of the manifest's")
	return cmd
}

// atOnce is how many pods are being deleted at a time.
const atOnce = 128

// manyAtOnce is eachNamed with jobs that overlap; what they print comes in the order of the names.
func (a *app) manyAtOnce(ctx context.Context, names []string, do func(c *client.Client, path godbus.ObjectPath) (job godbus.ObjectPath, err error)) error {
	type begun struct {
		client *client.Client
		job    godbus.ObjectPath
		err    error
	}
	var under []begun // way, the first of which is waited for
	rest := names
	return a.each(names, func(string) error {
		for ; len(rest) > 0 && len(under) < atOnce; rest = rest[1:] {
			c, path, err := a.pod(ctx, rest[0])
			b := begun{client: c, err: err}
			if err == nil {
				b.job, b.err = do(c, path)
			}
			under = append(under, b)
		}
		one := under[0]
		under = under[1:]
		return a.job(ctx, one.client, one.job, one.err)
	})
}

// deleteArgs finds out which pods are meant: exactly one of names, a file and all.
func (a *app) deleteArgs(cmd *cobra.Command, args []string, file string, all bool) ([]string, error) {
	ways := 0
	for _, given := range []bool{len(args) > 0, file != "", all} {
		if given {
			ways++
		}
	}
	switch {
	case ways != 1:
		return nil, Usagef("delete what? Give names of pods, or -f FILE, or --all")
	case all:
		c, err := a.client()
		if err != nil {
			return nil, err
		}
		pods, err := c.List(cmd.Context(), a.ownNamespace())
		for _, p := range pods {
			args = append(args, p.String())
		}
		return args, err
	case file != "":
		if a.local == nil {
			return nil, handOver()
		}
		text, err := readFile(file)
		if err != nil {
			return nil, err
		}
		return a.local.PodNames(text, a.namespace)
	}
	return a.names(cmd.Context(), args)
}
