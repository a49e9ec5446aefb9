package shim

import (
	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/runtime/crun"
)

// The exit statuses of magikshim launch, before it has become the OCI runtime.
const (
	// ExitFailure: something could not be done; the reason is on stderr and in [LaunchConfig.Log].
	ExitFailure = 1
	// ExitUsage: the command line or the configuration cannot be understood.
	ExitUsage = 64
	// ExitTempFail (EX_TEMPFAIL of sysexits.h): a namespace could not be opened, because the daemon
	// that had it open is gone. The container was never started; nothing is wrong with it.
	ExitTempFail = 75
)

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 4 << 20

// Owner names the daemon whose /proc/PID/fd paths stand in a configuration.
type Owner = nsfile.Owner

// LaunchConfig is what magikshim launch reads (c/NAME/launch.json). All paths are absolute, and are
// those of the pod's mount namespace.
type LaunchConfig struct {
	// Owner is checked before a namespace is opened when MountNS lies below /proc/Owner.PID; the
	// zero value is not checked.
	Owner Owner `json:"owner,omitzero"`
	// MountNS is the path of the pod's mount namespace; launch works in a copy of it, which the
	// container's processes keep alive.
	MountNS string `json:"mountNS"`
	// NetNS, IPCNS and UTSNS are joined before MountNS; empty: stay. An OCI runtime joins them itself.
	NetNS string `json:"netNS,omitempty"`
	IPCNS string `json:"ipcNS,omitempty"`
	UTSNS string `json:"utsNS,omitempty"`
	// Rootfs is how and where the container's root file system is mounted.
	Rootfs OverlayConfig `json:"rootfs"`
	// Binds are the volumes to make ready, in this order. The OCI spec has their Target as the
	// source of a mount.
	Binds []Bind `json:"binds,omitempty"`
	// Destinations are where in the container mounts will be made.
	Destinations []string `json:"destinations,omitempty"`
	// SubCgroup, when not empty, is the name of a child cgroup that launch makes in its own and
	// moves itself to (runc and youki want the unit's cgroup to be empty).
	SubCgroup string `json:"subCgroup,omitempty"`
	// FirstCgroup, when not empty, is the name of a child cgroup, of that in which the OCI runtime
	// has created the container, to which its first process is moved before it starts.
	FirstCgroup string `json:"firstCgroup,omitempty"`
	// Argv is the OCI runtime with its arguments; Argv[0] is an absolute path.
	Argv []string `json:"argv"`
	// Start, when not empty, makes a container in two steps instead of becoming the OCI runtime:
	// Argv creates it and writes the PID of its first process to PIDFile, the service manager is
	// notified that this is the unit's main process, and Start (an OCI runtime with its arguments,
	// as Argv) lets it run.
	Start   []string `json:"start,omitempty"`
	PIDFile string   `json:"pidFile,omitempty"`
	// Env is the whole environment of the OCI runtime, KEY=VALUE.
	Env []string `json:"env,omitempty"`
	// Cloned, KEY=VALUE, is what an OCI runtime has in its environment that runs from a read-only
	// mount of its program, as crun does of its own accord (CVE-2019-5736): with Start it is started
	// from such a mount, and not twice.
	Cloned string `json:"cloned,omitempty"`
	// Notify adds NOTIFY_SOCKET to Env: Argv notifies the service manager itself when it is ready.
	Notify bool `json:"notify,omitempty"`
	// FiltersCalls is for the unit that launch is started in (units.ContainerUnit), not for launch:
	// Argv limits its own system calls.
	FiltersCalls bool `json:"-"`
	// Log is the OCI runtime's JSON log; launch appends its own error to it in the same format.
	Log string `json:"log,omitempty"`
}

// OverlayConfig is the overlay mount of a container's root file system.
type OverlayConfig = crun.Overlay

// Bind is one volume, or a part of one.
type Bind = crun.Bind

// LogDriver says where the containers' output goes.
type LogDriver string

// The log drivers.
const (
	LogJournal LogDriver = "journal"
	LogFile    LogDriver = "file"
)

// PauseConfig is what magikshim pause reads (pause.json).
type PauseConfig struct {
	// Owner as in [LaunchConfig].
	Owner Owner `json:"owner,omitzero"`
	// NetNS, IPCNS, UTSNS and MountNS are the paths of the namespaces to join and keep; empty: stay
	// in the one of the host.
	NetNS   string `json:"netNS,omitempty"`
	IPCNS   string `json:"ipcNS,omitempty"`
	UTSNS   string `json:"utsNS,omitempty"`
	MountNS string `json:"mountNS,omitempty"`
	// SharePID asks for a PID namespace of the pod, whose PID 1 is a child of pause. PIDFile
	// (pidns.pid) gets the child's PID on the host, in decimal with a newline, before READY=1.
	SharePID bool   `json:"sharePID,omitempty"`
	PIDFile  string `json:"pidFile,omitempty"`

	// FIFODir is the directory of the FIFOs NAME.ATTEMPT.stdout and NAME.ATTEMPT.stderr.
	FIFODir string `json:"fifoDir"`
	// Driver is LogJournal when empty.
	Driver LogDriver `json:"driver,omitempty"`
	// LogDir (driver file) is the pod's directory; the lines go to LogDir/CONTAINER/ATTEMPT.log, or
	// where [SetLogPath] says.
	LogDir string `json:"logDir,omitempty"`
	// MaxLogBytes and MaxLogFiles (driver file) bound a container's log; 0: 10 MiB and 5.
	MaxLogBytes int64 `json:"maxLogBytes,omitempty"`
	MaxLogFiles int   `json:"maxLogFiles,omitempty"`
	// JournalSocket is /run/systemd/journal/socket when empty.
	JournalSocket string `json:"journalSocket,omitempty"`

	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid"`
	// Units are the unit names of the containers by container name: `journalctl -u UNIT` shows the
	// container's lines.
	Units map[string]string `json:"units,omitempty"`
}

// ReadConfig reads a configuration file of at most 4 MiB into config, a pointer to a [LaunchConfig]
// or a [PauseConfig]. Unknown fields are errors: a file of another version is not understood by
// half.
func ReadConfig(path string, config any) error {
	return atomicfile.LoadConfig(path, maxConfigBytes, config)
}
