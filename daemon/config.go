package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/magikrun/magikpod/agent"
	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
)

// DefaultConfigFile is where the configuration is read from.
const DefaultConfigFile = "/etc/magikpod/magikpod.yaml"

// maxConfigBytes bounds the configuration file.
const maxConfigBytes = 1 << 20

// Config is the configuration of the daemon: /etc/magikpod/magikpod.yaml, magikpod.yaml(5). Every key has a default.
type Config struct {
	StateDir string `json:"stateDir,omitempty"` // records, images, volumes
	RunDir   string `json:"runDir,omitempty"`   // sockets, pipes, bundles: gone after a reboot

	LogDriver agent.LogDriver `json:"logDriver,omitempty"` // journal or file
	LogDir    string          `json:"logDir,omitempty"`    // of the driver file

	Runtime   string `json:"runtime,omitempty"`   // crun, runc, youki or a path; empty: the first that is installed
	MaxPods   int    `json:"maxPods,omitempty"`   // 1 to pod.MaxPods
	PIDsLimit int64  `json:"pidsLimit,omitempty"` // processes and threads of one pod

	BackoffInitial metav1.Duration `json:"backoffInitial,omitzero"` // before the second restart of a container
	BackoffMax     metav1.Duration `json:"backoffMax,omitzero"`
	BackoffReset   metav1.Duration `json:"backoffReset,omitzero"` // running that long forgets the restarts

	IdleTimeout metav1.Duration `json:"idleTimeout,omitzero"` // the daemon leaves when it has had no pods and no clients for that long
	JobTimeout  metav1.Duration `json:"jobTimeout,omitzero"`  // of run and start, when the caller gives none

	Network NetworkConfig `json:"network,omitzero"`
}

// NetworkConfig says where pods are connected. Empty fields keep the defaults of package netsetup.
type NetworkConfig struct {
	Bridge string       `json:"bridge,omitempty"`
	IPv4   netip.Prefix `json:"ipv4,omitzero"`
	IPv6   netip.Prefix `json:"ipv6,omitzero"`
}

// DefaultConfig is the configuration without a file.
func DefaultConfig() Config {
	return Config{
		StateDir:       "/var/lib/magikpod",
		RunDir:         "/run/magikpod",
		LogDriver:      agent.LogJournal,
		LogDir:         "/var/log/pods",
		MaxPods:        pod.MaxPods,
		PIDsLimit:      4096,
		BackoffInitial: metav1.Duration{Duration: pod.DefaultBackoffInitial},
		BackoffMax:     metav1.Duration{Duration: pod.DefaultBackoffMax},
		BackoffReset:   metav1.Duration{Duration: pod.DefaultBackoffReset},
		IdleTimeout:    metav1.Duration{Duration: time.Minute},
		JobTimeout:     metav1.Duration{Duration: 10 * time.Minute},
	}
}

// LoadConfig reads the configuration file at path; a missing one is the default. Invalid: an unknown key, a wrong type or a value out of range.
func LoadConfig(path string) (Config, error) {
	config := DefaultConfig()
	data, err := atomicfile.Read(path, maxConfigBytes)
	if errors.Is(err, os.ErrNotExist) {
		return config, nil
	}
	if err != nil {
		return config, pod.Errorf(pod.Unavailable, "cannot read the configuration: %w", err)
	}
	if err := yaml.UnmarshalStrict(data, &config); err != nil {
		return config, pod.Errorf(pod.Invalid, "cannot read the configuration %s: %w", path, err)
	}
	if err := config.check(); err != nil {
		return config, pod.Errorf(pod.Invalid, "cannot use the configuration %s: %w", path, err)
	}
	return config, nil
}

// check returns the first value that is out of range.
func (c *Config) check() error {
	for key, dir := range map[string]string{"stateDir": c.StateDir, "runDir": c.RunDir, "logDir": c.LogDir} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" {
			return fmt.Errorf("%s: %q is not a clean absolute path", key, dir)
		}
	}
	if c.LogDriver != agent.LogJournal && c.LogDriver != agent.LogFile {
		return fmt.Errorf("logDriver: %q is neither journal nor file", c.LogDriver)
	}
	if c.MaxPods < 1 || c.MaxPods > pod.MaxPods {
		return fmt.Errorf("maxPods: %d is not in 1 to %d", c.MaxPods, pod.MaxPods)
	}
	if c.PIDsLimit < 16 || c.PIDsLimit > 1<<22 {
		return fmt.Errorf("pidsLimit: %d is not in 16 to %d", c.PIDsLimit, 1<<22)
	}
	for key, d := range map[string]metav1.Duration{
		"backoffInitial": c.BackoffInitial, "backoffMax": c.BackoffMax, "backoffReset": c.BackoffReset,
		"idleTimeout": c.IdleTimeout, "jobTimeout": c.JobTimeout,
	} {
		if d.Duration < time.Millisecond || d.Duration > 24*time.Hour {
			return fmt.Errorf("%s: %s is not in 1ms to 24h", key, d.Duration)
		}
	}
	return nil
}

// policy is what the planner needs of the configuration.
func (c *Config) policy() pod.Policy {
	return pod.Policy{BackoffInitial: c.BackoffInitial.Duration, BackoffMax: c.BackoffMax.Duration, BackoffReset: c.BackoffReset.Duration}
}

// podStateDir and podRunDir hold what belongs to one pod.
func (c *Config) podStateDir(uid string) string { return filepath.Join(c.StateDir, "pods", uid) }
func (c *Config) podRunDir(uid string) string   { return filepath.Join(c.RunDir, "pods", uid) }
