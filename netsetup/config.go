package netsetup

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// The defaults of [Config]. The IPv6 subnet is a unique local one (RFC 4193) that spells "magik".
const (
	DefaultBridge = "magikpod0"
	DefaultIPv4   = "10.212.0.0/16"
	DefaultIPv6   = "fd6d:6167:696b::/64"

	defaultIdle = 10 * time.Second
)

// Config says what the pod network looks like. It is complete with a StateFile.
type Config struct {
	// Bridge is the name of the bridge that the pods are attached to; [DefaultBridge] when empty.
	Bridge string
	// IPv4 and IPv6 are the subnets of the pods; the first address of each is the bridge's.
	// [DefaultIPv4] and [DefaultIPv6] when zero. On a host without IPv6 the pods have none either.
	IPv4, IPv6 netip.Prefix
	// StateFile remembers which pod has which address and ports. It is of no use after a reboot, so
	// it belongs below the run directory.
	StateFile string
	// Idle is how long the bridge and the table outlive the last pod; 10 s when zero.
	Idle time.Duration
	// Report, when not nil, is called with what a person should know: what was found wrong at the
	// start, what others have changed meanwhile, what cannot be repaired. It must not call the
	// Manager.
	Report func(text string)
	// Fault, when not nil, is called before each step with its name; the error it returns is the
	// step's. For tests.
	Fault func(step string) error
}

// Limits of the subnets: room for the network, the bridge and a pod, and not so much that a slip of
// the pen takes over the internet.
const (
	minBits4, maxBits4 = 8, 29
	minBits6, maxBits6 = 16, 124
)

func (c *Config) setDefaults() {
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if !c.IPv4.IsValid() {
		c.IPv4 = netip.MustParsePrefix(DefaultIPv4)
	}
	if !c.IPv6.IsValid() {
		c.IPv6 = netip.MustParsePrefix(DefaultIPv6)
	}
	if c.Idle == 0 {
		c.Idle = defaultIdle
	}
}

// Check says why the configuration cannot be used, its defaults filled in. It looks at nothing but
// the values.
func (c Config) Check() error {
	c.setDefaults()
	return c.check()
}

func (c *Config) check() error {
	if !bridgePattern.MatchString(c.Bridge) {
		return pod.Errorf(pod.Invalid, "cannot use bridge name %q: it needs 1 to 15 letters, digits, - or _, beginning with a letter", c.Bridge)
	}
	if p := c.IPv4; !p.Addr().Is4() || p.Bits() < minBits4 || p.Bits() > maxBits4 || p.Masked() != p {
		return pod.Errorf(pod.Invalid, "cannot use IPv4 subnet %s: it must be a network of /%d to /%d", p, minBits4, maxBits4)
	}
	if p := c.IPv6; !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() < minBits6 || p.Bits() > maxBits6 || p.Masked() != p {
		return pod.Errorf(pod.Invalid, "cannot use IPv6 subnet %s: it must be a network of /%d to /%d", p, minBits6, maxBits6)
	}
	return nil
}

// step is called before each step: it ends a set-up whose caller no longer waits, and lets tests
// make the step fail.
func (c *Config) step(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return pod.Errorf(pod.Unavailable, "cannot go on with step %s: %w", name, context.Cause(ctx))
	}
	if c.Fault != nil {
		return c.Fault(name)
	}
	return nil
}

// bridgePattern accepts what neither the kernel nor nft could read as anything else. The kernel's
// limit is IFNAMSIZ, with the final NUL.
var bridgePattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,14}$`)

// findNft also looks where a daemon's PATH may not lead. It returns "nft" when there is none: the
// error comes with the first use.
func findNft() string {
	if path, err := exec.LookPath("nft"); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"} {
		path := filepath.Join(dir, "nft")
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return "nft"
}
