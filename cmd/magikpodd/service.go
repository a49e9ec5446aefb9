package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/daemon"
	"github.com/magikrun/magikpod/dbus"
	"github.com/magikrun/magikpod/image"
	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	magikruntime "github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/engine"
	"github.com/magikrun/magikpod/runtime/microvm"
	"github.com/magikrun/magikpod/runtime/native"
	"github.com/magikrun/magikpod/runtime/wasm"
	"github.com/magikrun/magikpod/units"
	"github.com/magikrun/magikpod/volume"
)

// Where make install puts the helpers; $MAGIKPOD_SHIM, $MAGIKPOD_WASM,
// $MAGIKPOD_VMM and $MAGIKPOD_AGENT replace them.
const (
	shimPath  = "/usr/libexec/magikpod/magikshim"
	wasmPath  = "/usr/libexec/magikpod/magikwasm"
	vmmPath   = "/usr/libexec/magikpod/magikvmm"
	agentPath = "/usr/libexec/magikpod/magikagent"
)

// networks joins the manager with the function that makes namespaces.
type networks struct{ *netsetup.Manager }

func (networks) NewNamespace() (*os.File, error) { return netsetup.NewNamespace() }

// serve builds the adapters, runs the daemon and ends when ctx does, when the daemon has been idle
// for long enough, or when a connection is lost. It calls ready once the daemon can be used.
func serve(ctx context.Context, config daemon.Config, log *slog.Logger, ready func()) (err error) {
	unlock, err := lock(config)
	if err != nil {
		return err
	}
	defer unlock()
	store, sockets, err := openFileStore(config.RunDir, activation.Files(true))
	if err != nil { // without it pods run as well
		log.Warn("cannot use systemd's file descriptor store", "error", err)
	}
	// Accepted from the first moment on: whoever connects early waits for the answer, not for the
	// socket.
	listener, err := controlListener(sockets)
	if err != nil {
		return err
	}
	systemd, err := units.Connect(ctx)
	if err != nil {
		return err
	}
	defer systemd.Close()
	images, err := image.Open(filepath.Join(config.StateDir, "images"), image.Options{Components: config.Wasm.Components != ""})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	for _, warning := range images.Warnings() {
		log.Warn(warning)
	}
	network, err := netsetup.New(netsetup.Config{
		Bridge: config.Network.Bridge, IPv4: config.Network.IPv4, IPv6: config.Network.IPv6, StateFile: filepath.Join(config.RunDir, "network.json"),
		Report: func(text string) { log.Warn(text) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, network.Close()) }()
	volumes, err := volume.New(volume.Config{StateDir: config.StateDir, RunDir: config.RunDir})
	if err != nil {
		return err
	}
	registry, managers, err := classes(ctx, config, systemd, store, log)
	defer func() { // they wait for what has only just been started
		for _, m := range managers {
			err = errors.Join(err, m.Close())
		}
	}()
	if err != nil {
		return err
	}
	starting, started := whileConnected(ctx, systemd)
	defer started()
	d, err := daemon.New(starting, daemon.Options{
		Config: config, Registry: registry, Images: images, Networks: networks{network}, Volumes: volumes,
		Host: daemon.ReadHost(version, systemd.Version()), Log: log,
	})
	if err != nil && ctx.Err() != nil {
		log.Info("magikpodd is ending before it was ready; pods run on")
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	server, err := dbus.Serve(ctx, d, dbus.ServerOptions{Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if listener != nil {
		wg.Go(func() {
			if err := daemon.ServeControl(ctx, listener, d.ControlHandler()); err != nil {
				log.Error("cannot serve the control socket", "error", err)
			}
		})
	}
	if err := context.Cause(starting); err != nil && ctx.Err() == nil {
		return err // what has been read may be from before
	}
	started()
	ready()
	notify(log, sdnotify.SdNotifyReady+"\n"+statusText(d))
	defer notify(log, sdnotify.SdNotifyStopping)
	log.Info("magikpodd is ready", "version", version, "pods", len(d.List()))
	return wait(ctx, config, log, systemd, d, server)
}

// classes makes the runtime classes pod-containers, which runs modules too for pods that ask for it
// by an annotation, pod-wasm, and pod-microvm-containers.
func classes(ctx context.Context, config daemon.Config, systemd *units.Manager, store engine.FileStore, log *slog.Logger) (_ *magikruntime.Registry, managers []*engine.Manager, err error) {
	shim := helper("MAGIKPOD_SHIM", shimPath)
	containers, err := native.New(ctx, native.Config{RunDir: config.RunDir, ShimPath: shim, Runtime: config.Runtime, PIDsLimit: config.PIDsLimit})
	if err != nil {
		return nil, nil, err
	}
	modules := wasm.New(wasm.Config{
		Program: helper("MAGIKPOD_WASM", wasmPath), ShimPath: shim, Cache: filepath.Join(config.StateDir, "wasm"),
		Wasmtime: config.Wasm.Components, PIDsLimit: config.PIDsLimit, Log: log,
	})
	var registry magikruntime.Registry
	for _, class := range []engine.Runtime{native.Mixed{Runtime: containers, Modules: modules}, modules, vms(config, shim)} {
		manager, err := engine.New(ctx, engine.Config{
			Runtime: class, Layout: units.PodLayout{}, Units: systemd, RunDir: config.RunDir, StateDir: config.StateDir, ShimPath: shim,
			Files: store, Log: log,
		})
		if err != nil {
			return nil, managers, err
		}
		managers = append(managers, manager)
		registry.Add(manager)
	}
	return &registry, managers, nil
}

// vms runs VMs as the configuration says.
func vms(config daemon.Config, shim string) *microvm.Runtime {
	c := &config.MicroVM
	return microvm.New(microvm.Config{
		StateDir: filepath.Join(config.StateDir, "microvm"), ShimPath: shim,
		SupervisorPath: helper("MAGIKPOD_VMM", vmmPath), AgentPath: helper("MAGIKPOD_AGENT", agentPath),
		Driver: c.VMM, Program: c.Program, Machine: c.Machine, Accel: c.Accel, Kernel: c.Kernel, Runtime: c.Runtime,
		MemoryBytes: c.Memory.Value(), CPUs: c.CPUs, ScratchBytes: c.Scratch.Value(), PIDsLimit: config.PIDsLimit,
	})
}

// helper is the path of a program that the daemon starts.
func helper(variable, path string) string {
	if replaced := os.Getenv(variable); replaced != "" {
		return replaced
	}
	return path
}

// whileConnected returns a context that ends when the connection to systemd is lost, or stop is called.
func whileConnected(ctx context.Context, systemd *units.Manager) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // ends with ctx, as stop is always called
		select {
		case <-systemd.Lost():
			cancel(pod.Errorf(pod.Unavailable, "cannot go on: the connection to systemd is lost"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// lock makes the directories and keeps a second daemon out of them.
func lock(config daemon.Config) (unlock func(), err error) {
	for _, dir := range []string{config.StateDir, config.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, pod.Errorf(pod.Unavailable, "cannot make %s: %w", dir, err)
		}
	}
	f, err := os.OpenFile(filepath.Join(config.RunDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot lock %s: %w", config.RunDir, err)
	}
	// A daemon that is just ending gets the time to.
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if time.Since(began) > 5*time.Second {
			f.Close()
			return nil, pod.Errorf(pod.Unavailable, "cannot lock %s: another magikpodd uses it", config.RunDir)
		}
	}
}

// controlListener is the socket that systemd has passed (magikpodd.socket); nil when it has passed none.
func controlListener(files []*os.File) (net.Listener, error) {
	if len(files) == 0 {
		return nil, nil
	}
	if len(files) > 1 {
		return nil, fmt.Errorf("cannot use more than one socket: magikpodd.socket has too many")
	}
	defer files[0].Close() // the listener has its own
	listener, err := net.FileListener(files[0])
	if err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot take the socket that systemd has passed: %w", err)
	}
	return listener, nil
}

func notify(log *slog.Logger, state string) {
	if _, err := sdnotify.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "error", err)
	}
}

// wait returns when the daemon shall end; meanwhile it feeds the watchdog as long as the daemon is
// healthy.
func wait(ctx context.Context, config daemon.Config, log *slog.Logger, systemd *units.Manager, d *daemon.Daemon, server *dbus.Server) error {
	interval, err := sdnotify.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("cannot use the watchdog", "error", err)
	}
	var feed <-chan time.Time
	if interval > 0 {
		ticker := time.NewTicker(interval / 3)
		defer ticker.Stop()
		feed = ticker.C
	}
	idle := time.NewTicker(min(max(config.IdleTimeout.Duration/4, 10*time.Millisecond), 10*time.Second))
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			log.Info("magikpodd is ending; pods run on")
			return nil
		case <-systemd.Lost():
			return pod.Errorf(pod.Unavailable, "cannot go on: the connection to systemd is lost")
		case <-server.Lost():
			return pod.Errorf(pod.Unavailable, "cannot go on: the connection to the bus is lost")
		case <-feed:
			if err := d.Check(); err != nil {
				log.Error("the daemon is not healthy", "error", err)
				continue
			}
			notify(log, sdnotify.SdNotifyWatchdog)
		case <-idle.C:
			notify(log, statusText(d))
			if !isIdle(config.IdleTimeout.Duration, d, server) {
				continue
			}
			// From here on systemd queues what comes, and starts the daemon again.
			notify(log, sdnotify.SdNotifyStopping)
			if server.Leave() {
				log.Info("magikpodd is ending: no pods and no clients for a while")
				return nil
			}
			notify(log, sdnotify.SdNotifyReady)
		}
	}
}

// statusText is what systemctl status shows of the daemon.
func statusText(d *daemon.Daemon) string {
	ready, pods := 0, d.List()
	for _, p := range pods {
		if p.Total > 0 && p.Ready == p.Total {
			ready++
		}
	}
	return fmt.Sprintf("STATUS=%d pods, %d of them ready", len(pods), ready)
}

// isIdle says whether neither a pod nor a client has needed the daemon for that long.
func isIdle(timeout time.Duration, d *daemon.Daemon, server *dbus.Server) bool {
	since, ok := d.Idle()
	client, quiet := server.Idle()
	return ok && quiet && time.Since(since) >= timeout && time.Since(client) >= timeout
}
