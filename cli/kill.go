package cli

import (
	"strconv"
	"strings"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/dbus/client"
)

func killCommand(a *app) *cobra.Command {
	var container, name string
	cmd := &cobra.Command{
		Use: "kill POD...", Short: "Send a signal to the containers of pods", Args: someArgs, ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, err := parseSignal(name)
			if err != nil {
				return err
			}
			return a.eachPod(cmd.Context(), args, func(c *client.Client, path godbus.ObjectPath) (godbus.ObjectPath, error) {
				return "", c.Kill(cmd.Context(), path, container, sig)
			})
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "only this container")
	cmd.Flags().StringVarP(&name, "signal", "s", "SIGKILL", "the signal, by name or number")
	return cmd
}

// parseSignal reads SIGTERM, term or 15.
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 64 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, Usagef("unknown signal %q", s)
}
