package shim

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/sdnotify"
)

// Pause keeps a pod's namespaces for as long as it runs, and relays the containers' output; SIGTERM
// or SIGINT ends it after the drain. It returns the exit status. The caller must be on the
// process's main thread, locked to it: the namespaces are that thread's, and are found at
// /proc/PID/ns.
func Pause(configPath string) int {
	// One of these runs in every pod. There is nothing to run in parallel, and next to no garbage.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(16 << 20)
	var config PauseConfig
	if err := ReadConfig(configPath, &config); err != nil {
		complainPause(err)
		return ExitUsage
	}
	err := pause(&config)
	if err == nil {
		return 0
	}
	complainPause(err)
	if errors.Is(err, nsfile.ErrGone) {
		return ExitTempFail
	}
	return ExitFailure
}

func complainPause(err error) { Complain("magikshim pause", "", err) }

func pause(config *PauseConfig) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	manager, err := sdnotify.Dial() // the socket's path is the host's
	if err != nil && !errors.Is(err, sdnotify.ErrUnset) {
		return err
	}
	if err := (namespaces{config.NetNS, config.IPCNS, config.UTSNS, config.MountNS}).join(config.Owner); err != nil {
		return err
	}
	relay, err := newRelay(config.FIFODir, complainPause)
	if err != nil {
		return err
	}
	switch config.Driver {
	case LogJournal, "":
		relay.sink = newJournal(config, relay.expired)
	case LogFile:
		relay.sink = newCRILogs(config)
	default:
		relay.closeAll()
		return fmt.Errorf("cannot relay logs: unknown driver %q", config.Driver)
	}
	if config.SharePID {
		child, err := startReaper(config.PIDFile)
		if err != nil {
			relay.closeAll()
			return err
		}
		defer child.stop()
		relay.extraFD = child.pidfd
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-stop:
			relay.stop()
		case <-done:
		}
	}()
	if manager != nil {
		if err := manager.Send("READY=1"); err != nil {
			complainPause(err)
		}
		manager.Close()
	}
	return relay.run()
}
