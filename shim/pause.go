package shim

import (
	"errors"
	"os/signal"
	"syscall"

	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/sdnotify"
)

// Pause keeps a pod's namespaces for as long as it runs, and relays the containers' output;
// [StopSignal] ends it after the drain. It returns the exit status. The caller must be on the
// process's main thread, locked to it: the namespaces are that thread's, and are found at
// /proc/PID/ns.
func Pause(configPath string) int {
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	nameProcess()
	err := wakeUp()
	if errors.Is(err, errNotDozed) {
		var wake int
		if wake, err = blockStop(); err == nil {
			var config PauseConfig
			if err := ReadConfig(configPath, &config); err != nil {
				complainPause(err)
				return ExitUsage
			}
			err = pause(&config, wake)
		}
	}
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

func pause(config *PauseConfig, wake int) error {
	manager, err := sdnotify.Dial() // the socket's path is the host's
	if err != nil && !errors.Is(err, sdnotify.ErrUnset) {
		return err
	}
	if err := (namespaces{config.NetNS, config.IPCNS, config.UTSNS, config.MountNS}).join(config.Owner); err != nil {
		return err
	}
	relay, err := newRelay(config.FIFODir, wake, complainPause)
	if err != nil {
		return err
	}
	if err := relay.openSink(config); err != nil {
		return err
	}
	relay.config, relay.rest = config, firstRest
	if config.SharePID {
		child, err := startReaper(config.PIDFile)
		if err != nil {
			relay.closeAll()
			return err
		}
		defer child.stop()
		relay.extraFD = child.pidfd
	}
	if manager != nil {
		if err := manager.Send("READY=1"); err != nil {
			complainPause(err)
		}
		manager.Close()
	}
	return relay.run()
}
