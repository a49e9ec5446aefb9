// Command magikpodd runs Kubernetes Pods as systemd units: the daemon that owns the bus name org.magikpod1. See magikpodd(8).
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
	"syscall"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/daemon"
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
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	logrus.SetOutput(io.Discard) // libraries of image and stats use it
	log := daemon.NewLogger(os.Stderr, level)
	unix.Umask(0o022)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, *config, log); err != nil {
		log.Error("magikpodd ends", "error", err)
		return 1
	}
	return 0
}
