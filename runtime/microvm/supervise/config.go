package supervise

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// Config is what the supervisor reads. All paths are absolute.
type Config struct {
	// Owner is checked before NetNS is opened when that lies below /proc/Owner.PID; the zero value
	// is not checked.
	Owner nsfile.Owner `json:"owner,omitzero"`
	// NetNS is the pod's network namespace; empty: stay in the one of the host.
	NetNS string `json:"netNS,omitempty"`
	// UID and GID are the VMM's own, not 0; see [UserOf].
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// Dir is a directory of this VM alone, which only root can enter; who writes the configuration
	// makes it. The supervisor removes what it makes in it.
	Dir string `json:"dir"`
	// VM is the VM. Its sockets lie where SetPaths puts them.
	VM vmm.Config `json:"vm"`
	// PowerOffMillis is how long the guest may take to power off when the unit is stopped
	// (SIGTERM); 0: 5 s.
	PowerOffMillis int `json:"powerOffMillis,omitempty"`
	// WatchdogMillis is how long a guest may leave all requests unanswered before its VM is ended;
	// 0: for ever.
	WatchdogMillis int `json:"watchdogMillis,omitempty"`
}

// stateFile is the name of the file with the [vmm.State], in Dir, which is there when the VM runs.
const stateFile = "vm.state"

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// firstUser: the users from here on are for nobody else (systemd's UIDS-GIDS.md: unused from
// 1879048192).
const firstUser = 1_900_000_000

// UserOf returns the user and group of a VM, from its context ID, which only one VM of the host has.
func UserOf(cid uint32) uint32 { return firstUser + cid%100_000_000 }

func (c *Config) powerOff() time.Duration {
	if c.PowerOffMillis <= 0 {
		return 5 * time.Second
	}
	return time.Duration(c.PowerOffMillis) * time.Millisecond
}

func (c *Config) watchdog() time.Duration { return time.Duration(c.WatchdogMillis) * time.Millisecond }

// SetPaths sets the paths of the VM's sockets. Those that the VMM or a helper makes itself are in a
// directory that the VM's user may write to: the state, which root trusts, is not.
func (c *Config) SetPaths() {
	c.VM.Control = filepath.Join(c.Dir, "control")
	if c.VM.Vsock.Kind != vmm.VsockVhost {
		c.VM.Vsock.Path = filepath.Join(c.socketDir(), "vsock")
	}
	if c.VM.Share != nil {
		c.VM.Share.Socket = filepath.Join(c.Dir, "share")
	}
}

// socketDir belongs to the VM's user.
func (c *Config) socketDir() string { return filepath.Join(c.Dir, "s") }

// ReadConfig reads a configuration. Unknown fields are errors, as [atomicfile.LoadConfig] has it.
func ReadConfig(path string) (*Config, error) {
	config := &Config{}
	if err := atomicfile.LoadConfig(path, maxConfigBytes, config); err != nil {
		return nil, err
	}
	if config.UID == 0 || config.GID == 0 || config.Dir == "" {
		return nil, fmt.Errorf("cannot read configuration %s: uid, gid and dir are needed", path)
	}
	return config, nil
}

// ReadState returns the state of a VM that runs.
func (c *Config) ReadState() (vmm.State, error) {
	var s vmm.State
	data, err := os.ReadFile(c.Dir + "/" + stateFile)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return vmm.State{}, fmt.Errorf("cannot read the state of the VM: %w", err)
	}
	return s, nil
}
