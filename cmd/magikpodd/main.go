// Command magikpodd runs Kubernetes Pods as systemd units: the daemon that owns the bus name
// org.magikpod1. See magikpodd(8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/daemon"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// version is set by the linker.
var version = "unknown"

func init() {
	// Namespaces are made on threads that are thrown away; the main thread, which names the process in /proc, must never be one of them.
	runtime.LockOSThread()
}

func main() { os.Exit(run(os.Args[1:])) }

// run is main with its arguments and exit status.
func run(args []string) int {
	flags := flag.NewFlagSet("magikpodd", flag.ContinueOnError)
	config := flags.String("config", daemon.DefaultConfigFile, "the configuration `file`")
	debug := flags.Bool("debug", false, "log each step")
	check := flags.Bool("check", false, "print what is wrong with the configuration file and exit")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "magikpodd: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if *showVersion {
		fmt.Println("magikpodd", version)
		return 0
	}
	settings, err := daemon.LoadConfig(*config)
	if *check {
		if err != nil {
			fmt.Fprintln(os.Stderr, "magikpodd:", err)
			return exitConfig
		}
		return 0
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	logrus.SetOutput(io.Discard) // libraries of image and stats use it
	log := daemon.NewLogger(os.Stderr, level)
	unix.Umask(0o022)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err != nil && pod.KindOf(err) == pod.Invalid {
		failed(log, err)
		return exitConfig
	}
	ready := false
	if err == nil {
		err = serve(ctx, settings, log, func() { ready = true })
	}
	switch {
	case err == nil:
		return 0
	case ready:
		log.Error("magikpodd is ending", "error", err)
		return 1
	case ctx.Err() != nil:
		log.Info("magikpodd was asked to end while it was starting", "error", err)
		return 0
	}
	failed(log, err)
	select {
	case <-time.After(failTime):
	case <-ctx.Done():
	}
	return 1
}

const (
	// exitConfig is sysexits(3)'s EX_CONFIG. magikpodd.service is not started again after it.
	exitConfig = 78
	// failTime is how long a start that failed lasts at least: systemd starts the daemon again for
	// ever, and a client reads the reason meanwhile.
	failTime = 3 * time.Second
)

// failed reports to the log and systemd why the daemon cannot start. `systemctl status` shows the
// reason until the next start, and the client (dbus/client) returns it to who calls.
func failed(log *slog.Logger, err error) {
	log.Error("magikpodd cannot start", "error", err)
	notify(log, "STATUS="+contract.NotStarted+strings.Join(strings.Fields(err.Error()), " "))
}
