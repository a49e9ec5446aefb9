package onhost

import (
	"path/filepath"
	"strconv"

	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
)

// The names in a bundle.
const (
	ConfigFile = "config.json" // what runs the container reads it
	LaunchFile = "launch.json" // magikshim launch reads it
	rootfsName = "rootfs"
	mountsName = "mnt"
)

// Launch is what magikshim launch is to read, but for the command, and the volumes as whoever runs
// the container sees them.
func Launch(s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (shim.LaunchConfig, []runtime.Mount) {
	mounts, binds := stageMounts(s.TmpfsDir, a.Bundle, config.Mounts)
	c := shim.LaunchConfig{
		Owner: nsfile.Self(), MountNS: nsfile.Path(s.Namespaces.Mount), Binds: binds, Log: a.Log,
		Rootfs: shim.OverlayConfig{
			LayersDir: config.Image.Rootfs.Dir, Lower: config.Image.Rootfs.Layers,
			Upper: filepath.Join(a.Layer, "upper"), Work: filepath.Join(a.Layer, "work"), Target: filepath.Join(a.Bundle, rootfsName),
		},
	}
	for _, mount := range config.Mounts {
		c.Destinations = append(c.Destinations, mount.Destination)
	}
	return c, mounts
}

// Argv is the command of the container's unit; program is magikshim.
func Argv(program string, a runtime.Attempt) []string {
	return []string{program, "launch", "--config", filepath.Join(a.Bundle, LaunchFile)}
}

// stageMounts gives each volume a place below the bundle that launch binds it to: the OCI runtime
// sees nothing but such places, so nothing in a volume leads it astray. A tmpfs of the container's
// own stays as it is.
func stageMounts(tmpfsDir, bundle string, mounts []runtime.Mount) ([]runtime.Mount, []shim.Bind) {
	staged := make([]runtime.Mount, 0, len(mounts))
	var binds []shim.Bind
	for _, mount := range mounts {
		if mount.SharedTmpfs != "" {
			mount.Source = filepath.Join(tmpfsDir, mount.SharedTmpfs)
		}
		if mount.Source != "" {
			target := filepath.Join(bundle, mountsName, strconv.Itoa(len(binds)))
			binds = append(binds, shim.Bind{Source: mount.Source, SubPath: mount.SubPath, Target: target, ReadOnly: mount.ReadOnly})
			mount.Source, mount.SubPath, mount.SharedTmpfs = target, "", ""
		}
		staged = append(staged, mount)
	}
	return staged, binds
}
