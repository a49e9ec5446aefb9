package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/internal/printable"
)

// app is what the verbs share.
type app struct {
	out, errOut io.Writer // escape what a terminal could act on: much of what is printed was written by containers and registries
	stdout      *os.File  // as it is
	namespace   string
	output      string
	dbus        *client.Client
	version     string
	local       *Local
}

func newApp(stdout, stderr *os.File) *app {
	return &app{out: printable.NewWriter(stdout, false), errOut: printable.NewWriter(stderr, false), stdout: stdout}
}

const rootLong = `magikpodctl runs Kubernetes pods on this host, without a cluster: every container is a systemd service in the slice of its pod. It talks to magikpodd(8) over D-Bus.

A pod is named POD or NAMESPACE/POD; pod/POD and the words "pod POD" are understood too. A command prints what it made on standard output, one name a line; messages for people go to standard error.

Exit status: 0 success; 1 error; 2 wrong usage; 3 not found; 4 not permitted; 5 conflict, such as a name that is taken; 6 unavailable, also after a timeout; 7 invalid manifest; 130 interrupted. exec returns the status of its command.

See also magikpodd(8), magikpod.yaml(5), org.magikpod1(5), systemctl(1), journalctl(1).`

// newRoot makes the command with all verbs.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "magikpodctl", Short: "Run Kubernetes pods as systemd units", Long: rootLong,
		SilenceErrors: true, SilenceUsage: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return exitStatus(exitUsage)
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkOutput() },
	}
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVarP(&a.namespace, "namespace", "n", "", "the namespace of the pod (default \"default\")")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "table, wide, json, yaml or name")
	for _, add := range []func(*app) *cobra.Command{
		runCommand, createCommand, listCommand, getCommand, statusCommand, logsCommand, startCommand, stopCommand, restartCommand,
		deleteCommand, killCommand, waitCommand, execCommand, validateCommand, eventsCommand, statsCommand, imageCommand, classesCommand,
		wasmCommand, infoCommand, versionCommand,
	} {
		root.AddCommand(add(a))
	}
	return root
}

func (a *app) checkOutput() error {
	switch a.output {
	case "table", "wide", "json", "yaml", "name":
		return nil
	}
	return Usagef("unknown output format %q: use table, wide, json, yaml or name", a.output)
}

// client connects to the daemon, once.
func (a *app) client() (*client.Client, error) {
	if a.dbus != nil {
		return a.dbus, nil
	}
	c, err := client.Dial("")
	if err != nil {
		return nil, err
	}
	a.dbus = c
	return c, nil
}

// ownNamespace is the namespace of -n, or the default one.
func (a *app) ownNamespace() string {
	if a.namespace == "" {
		return podapi.DefaultNamespace
	}
	return a.namespace
}

// list lists the pods of the namespace, or of all of them.
func (a *app) list(ctx context.Context, c *client.Client, all bool) ([]podapi.Summary, error) {
	namespace := a.ownNamespace()
	if all {
		namespace = ""
	}
	return c.List(ctx, namespace)
}

// split reads POD or NAMESPACE/POD.
func (a *app) split(arg string) (namespace, name string, err error) {
	namespace, name = a.ownNamespace(), arg
	if ns, rest, ok := strings.Cut(arg, "/"); ok {
		if a.namespace != "" && a.namespace != ns {
			return "", "", Usagef("%s is not in the namespace %s", arg, a.namespace)
		}
		namespace, name = ns, rest
	}
	return namespace, name, nil
}

// withClient makes a verb of what is done with a connection to the daemon.
func (a *app) withClient(do func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	}
}

// withPod makes a verb of what is done with the one pod that the arguments name.
func (a *app) withPod(do func(ctx context.Context, c *client.Client, path godbus.ObjectPath) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, path, err := a.podOf(cmd.Context(), args)
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, path)
	}
}

// podOf finds the pod that args name.
func (a *app) podOf(ctx context.Context, args []string) (*client.Client, godbus.ObjectPath, error) {
	arg, err := a.onePod(ctx, args)
	if err != nil {
		return nil, "", err
	}
	return a.pod(ctx, arg)
}

// pod finds the pod that arg names.
func (a *app) pod(ctx context.Context, arg string) (*client.Client, godbus.ObjectPath, error) {
	namespace, name, err := a.split(arg)
	if err != nil {
		return nil, "", err
	}
	c, err := a.client()
	if err != nil {
		return nil, "", err
	}
	path, err := c.Pod(ctx, namespace, name)
	return c, path, err
}

// each does something to each of the pods and goes on after an error; the first error decides the
// exit status, all others are printed.
func (a *app) each(args []string, do func(arg string) error) error {
	var first error
	for _, arg := range args {
		err := do(arg)
		switch {
		case err == nil:
		case first == nil && !errors.Is(err, context.Canceled):
			first = err
		case errors.Is(err, context.Canceled):
			return err
		default:
			a.complain(err)
		}
	}
	return first
}

// eachPod does something to each of the pods that args name, once all of these were understood, and
// waits for the job, if it makes one.
func (a *app) eachPod(ctx context.Context, args []string, do func(c *client.Client, path godbus.ObjectPath) (job godbus.ObjectPath, err error)) error {
	names, err := a.names(ctx, args)
	if err != nil {
		return err
	}
	return a.eachNamed(ctx, names, do)
}

// eachNamed is eachPod for names that were understood already.
func (a *app) eachNamed(ctx context.Context, names []string, do func(c *client.Client, path godbus.ObjectPath) (job godbus.ObjectPath, err error)) error {
	return a.each(names, func(arg string) error {
		c, path, err := a.pod(ctx, arg)
		if err != nil {
			return err
		}
		job, err := do(c, path)
		if job == "" {
			return err
		}
		return a.job(ctx, c, job, err)
	})
}

// job waits for a job and prints what it made, one a line.
func (a *app) job(ctx context.Context, c *client.Client, path godbus.ObjectPath, err error) error {
	if err != nil {
		return err
	}
	info, err := c.Wait(ctx, path, a.progress())
	if err != nil {
		return err
	}
	for _, line := range info.Warnings {
		if _, err := fmt.Fprintln(a.errOut, printable.Line(line)); err != nil {
			return err
		}
	}
	for _, line := range info.Output {
		if err := a.printName(line); err != nil {
			return err
		}
	}
	return nil
}

// progress returns what prints what a job waits for, and, if somebody looks on, how far it is.
func (a *app) progress() func(podapi.JobInfo) {
	watched := isTerminal(os.Stderr)
	last, problem := "", ""
	return func(j podapi.JobInfo) {
		if watched && j.Progress != "" && j.Progress != last {
			last = j.Progress
			_, _ = fmt.Fprintln(a.errOut, printable.Line(j.Progress))
		}
		if j.State == "running" && j.Err != nil && j.Err.Error() != problem {
			problem = j.Err.Error()
			a.complain(fmt.Errorf("still waiting: %w", j.Err))
		}
	}
}

// usageArgs makes cobra's argument checks usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w (usage: %s)", err, cmd.UseLine())}
		}
		return nil
	}
}

var (
	noArgs = usageArgs(func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command or argument %q", args[0])
		}
		return nil
	})
	oneArg   = usageArgs(cobra.ExactArgs(1))
	podArg   = usageArgs(cobra.RangeArgs(1, 2)) // POD or TYPE POD
	someArgs = usageArgs(cobra.MinimumNArgs(1))
)

// readFile reads a manifest, "-" from standard input. One byte more than is allowed is read, so
// that it shows when it is too long.
func readFile(name string) ([]byte, error) {
	var in io.Reader = os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, errkind.WithKind(FileKind(err), fmt.Errorf("cannot read the manifest: %w", err))
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, podapi.MaxManifestBytes+1))
	if err != nil {
		return nil, errkind.Errorf(errkind.Internal, "cannot read the manifest %s: %w", name, err)
	}
	return text, podapi.CheckManifestSize(text)
}

// FileKind is the kind of an error of opening a file.
func FileKind(err error) errkind.Kind {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errkind.NotFound
	case errors.Is(err, os.ErrPermission):
		return errkind.Denied
	}
	return errkind.Internal
}

// age is how long ago t was, as kubectl prints it.
func age(t time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	d := max(time.Since(t), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// completePods completes the names of pods.
func (a *app) completePods(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	list, err := c.List(ctx, a.ownNamespace())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range list {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
