package cli

import (
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/internal/printable"
)

func logsCommand(a *app) *cobra.Command {
	var o podapi.LogOptions
	var since string
	cmd := &cobra.Command{
		Use: "logs POD", Short: "Print the log of a container of a pod", Args: podArg, ValidArgsFunction: a.completePods,
		Example: `  magikpodctl logs -f web
  magikpodctl logs -c server --tail 20 --timestamps web
  magikpodctl logs -c server --previous web
  journalctl MAGIKPOD_POD=web MAGIKPOD_CONTAINER=server`,
		Long: `Print the log of a container of a pod.

A file or pipe gets what the container wrote, unchanged. On a terminal, control characters and others that do not show as themselves are printed as \x1b or \u009b; colours pass. (exec passes on unchanged what its command writes.)`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Tail < -1 {
				return Usagef("--tail %d: no number of lines", o.Tail)
			}
			var err error
			if o.Since, err = parseSince(since); err != nil {
				return err
			}
			c, path, err := a.podOf(cmd.Context(), args)
			if err != nil {
				return err
			}
			lines, err := c.Logs(cmd.Context(), path, o)
			if err != nil {
				return err
			}
			stop := closeWhenDone(cmd.Context(), lines)
			defer stop()
			if isTerminal(a.stdout) {
				w := printable.NewWriter(a.stdout, true)
				_, err = io.Copy(w, lines)
				err = errors.Join(err, w.Flush())
			} else {
				_, err = io.Copy(a.stdout, lines)
			}
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			if errors.Is(err, syscall.EPIPE) {
				return nil
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.Container, "container", "c", "", "the container; the first one when not given")
	f.BoolVarP(&o.Follow, "follow", "f", false, "keep printing new lines")
	f.BoolVarP(&o.Previous, "previous", "p", false, "of the attempt before this one")
	f.IntVar(&o.Tail, "tail", -1, "only this many of the newest lines")
	f.StringVar(&since, "since", "", "only lines newer than a duration (5m) or a time (RFC 3339)")
	f.BoolVar(&o.Timestamps, "timestamps", false, "print the time of each line")
	return cmd
}

// parseSince reads a duration before now or a time.
func parseSince(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, Usagef("--since %q: neither a duration such as 5m nor a time such as 2006-01-02T15:04:05Z", s)
	}
	return t, nil
}
