package wire

import (
	"bytes"
	"net/netip"
	"path"
	"strings"
)

func invalid(format string, args ...any) error { return Errorf(CodeInvalidRequest, format, args...) }

// first is the first error, as an interface that is nil when there is none.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkName accepts the names of containers, volumes, disks, shares: they become parts of paths.
// IDs of attempts too.
func checkName(what, name string, limit int) error {
	if name == "" || len(name) > limit {
		return invalid("the %s must have 1 to %d characters", what, limit)
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.' {
			return invalid("the %s %.80q has characters other than letters, digits, '-', '_' and '.'", what, name)
		}
	}
	if name[0] == '.' || name[0] == '-' {
		return invalid("the %s %.80q begins with %q", what, name, name[0])
	}
	return nil
}

// A container's name is at most 63 characters long, as in Kubernetes; others come from names of
// 253, or from hashes.
func checkContainer(name string) error { return checkName("container name", name, 63) }

func checkID(id string) error { return checkName("container ID", id, 64) }

func checkOptionalID(id string) error {
	if id == "" {
		return nil
	}
	return checkID(id)
}

// isObject says whether valid JSON is an object.
func isObject(raw []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) }

func checkTimeout(ms int64) error {
	if ms < 0 || ms > MaxWait.Milliseconds() {
		return invalid("the timeout of %d ms is not between 0 and %d", ms, MaxWait.Milliseconds())
	}
	return nil
}

func checkPort(port int) error {
	if port < 1 || port > 65535 {
		return invalid("the port %d is not between 1 and 65535", port)
	}
	return nil
}

func checkText(what, text string, limit int) error {
	if len(text) > limit || strings.ContainsRune(text, 0) {
		return invalid("the %s has more than %d bytes or a NUL", what, limit)
	}
	return nil
}

// checkSubPath accepts relative paths that do not go up.
func checkSubPath(sub string) error {
	if sub == "" {
		return nil
	}
	if err := checkText("path", sub, MaxPathSize); err != nil {
		return err
	}
	for part := range strings.SplitSeq(sub, "/") {
		if part == ".." {
			return invalid("the path %.80q contains ..", sub)
		}
	}
	if path.IsAbs(sub) {
		return invalid("the path %.80q is absolute", sub)
	}
	return nil
}

func checkArgs(args []string) error {
	if len(args) == 0 || len(args) > MaxArgs || args[0] == "" {
		return invalid("the command must have 1 to %d parts, the first not empty", MaxArgs)
	}
	for _, arg := range args {
		if err := checkText("argument", arg, MaxArg); err != nil {
			return err
		}
	}
	return nil
}

// Check implements [Request].
func (r Ping) Check() error { return nil }

// Check implements [Request].
func (r PowerOff) Check() error { return nil }

// Check implements [Request].
func (r Configure) Check() error {
	if err := checkText("host name", r.Hostname, 64); err != nil {
		return err
	}
	if r.Scratch != "" {
		if err := checkName("serial", r.Scratch, 64); err != nil {
			return err
		}
	}
	if len(r.Shares) > MaxShares || len(r.Sysctls) > MaxSysctls {
		return invalid("there are more than %d shares or %d sysctls", MaxShares, MaxSysctls)
	}
	for _, tag := range r.Shares {
		if err := checkName("share", tag, 36); err != nil {
			return err
		}
	}
	for name, value := range r.Sysctls {
		if err := first(checkSysctl(name), checkText("sysctl", value, MaxPathSize)); err != nil {
			return err
		}
	}
	if r.Network == nil {
		return nil
	}
	return r.Network.check()
}

// checkSysctl accepts the names that become a path below /proc/sys.
func checkSysctl(name string) error {
	if err := checkSubPath(name); err != nil {
		return err
	}
	return checkName("sysctl", strings.ReplaceAll(name, "/", "."), 253)
}

func (n *Network) check() error {
	if len(n.MAC) != 17 {
		return invalid("the hardware address %.40q is not of the form 02:00:00:00:00:01", n.MAC)
	}
	if n.MTU < 0 || n.MTU > 65535 || len(n.Addresses) > MaxNetwork || len(n.Routes) > MaxNetwork {
		return invalid("the network has an MTU of %d, %d addresses and %d routes: more than there can be", n.MTU, len(n.Addresses), len(n.Routes))
	}
	for _, address := range n.Addresses {
		if _, err := netip.ParsePrefix(address); err != nil {
			return invalid("the address %.80q is not an address with a prefix length", address)
		}
	}
	for _, route := range n.Routes {
		if _, err := netip.ParseAddr(route.Via); err != nil {
			return invalid("the gateway %.80q is not an address", route.Via)
		}
	}
	return nil
}

// Check implements [Request].
func (r Copy) Check() error { return checkName("volume", r.Volume, 253) }

// Check implements [Request].
func (r Create) Check() error {
	if err := first(checkContainer(r.Container), checkID(r.ID)); err != nil {
		return err
	}
	if !isObject(r.Spec) || len(r.Mounts) > MaxMounts {
		return invalid("there is no spec, or there are more than %d mounts", MaxMounts)
	}
	if err := r.Rootfs.check(); err != nil {
		return err
	}
	for _, m := range r.Mounts {
		if err := m.check(); err != nil {
			return err
		}
	}
	return nil
}

func (i Image) check() error {
	switch {
	case (i.Disk == "") == (i.Share == "") || i.Disk != "" && i.File != "":
		return invalid("an image must be either on a disk or in a file on a share")
	case i.Disk != "":
		return checkName("serial", i.Disk, 64)
	}
	return first(checkName("share", i.Share, 36), checkName("file", i.File, 253))
}

func (m Mount) check() error {
	if (m.Kind == MountImage) != (m.Image != nil) {
		return invalid("a mount of the kind image has an image, and no other has")
	}
	limit := 253
	switch m.Kind {
	case MountCopy, MountScratch, MountTmpfs:
	case MountShare:
		limit = 36
	case MountImage:
		if m.Name != "" {
			return invalid("a mount of the kind image has no name")
		}
		return first(m.Image.check(), checkSubPath(m.SubPath))
	case MountMessage:
		if m.Name != "" || m.SubPath != "" {
			return invalid("a mount of the kind message has no name and no path")
		}
		return nil
	default:
		return invalid("there is no kind of mounts %.40q", m.Kind)
	}
	if m.Mode > 0o7777 || m.Bytes < 0 {
		return invalid("the mode or the size of a mount cannot be")
	}
	return first(checkName("source of a mount", m.Name, limit), checkSubPath(m.SubPath))
}

// Check implements [Request].
func (r Start) Check() error { return first(checkContainer(r.Container), checkID(r.ID)) }

// Check implements [Request].
func (r Signal) Check() error {
	if r.Signal < 1 || r.Signal > 64 {
		return invalid("there is no signal %d", r.Signal)
	}
	return first(checkContainer(r.Container), checkOptionalID(r.ID))
}

// Check implements [Request].
func (r Stats) Check() error { return nil }

// Check implements [Request].
func (r Exec) Check() error {
	if err := first(checkContainer(r.Container), checkArgs(r.Args), checkTimeout(r.Timeout), checkText("user", r.User, 256), checkText("directory", r.Cwd, MaxPathSize)); err != nil {
		return err
	}
	if len(r.Env) > MaxEnv || r.Cwd != "" && !path.IsAbs(r.Cwd) || r.Size != nil && !r.TTY {
		return invalid("there are more than %d variables, a relative directory or a size without a terminal", MaxEnv)
	}
	for _, entry := range r.Env {
		if err := checkText("variable", entry, MaxArg); err != nil {
			return err
		}
		if name, _, ok := strings.Cut(entry, "="); !ok || name == "" {
			return invalid("the variable %.80q is not of the form NAME=VALUE", entry)
		}
	}
	return nil
}

// Check implements [Request].
func (r Probe) Check() error {
	if err := first(checkContainer(r.Container), checkTimeout(r.Timeout)); err != nil {
		return err
	}
	kinds := 0
	for _, set := range []bool{r.Exec != nil, r.HTTP != nil, r.TCP != nil} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return invalid("a probe is one of exec, http and tcp")
	case r.Exec != nil:
		return checkArgs(r.Exec)
	case r.TCP != nil:
		return first(checkPort(r.TCP.Port), checkText("host", r.TCP.Host, 253))
	}
	return r.HTTP.check()
}

func (h *HTTPProbe) check() error {
	if h.Scheme != "" && h.Scheme != "http" && h.Scheme != "https" || len(h.Headers) > MaxHeaders {
		return invalid("the scheme of the probe is neither http nor https, or it has more than %d headers", MaxHeaders)
	}
	for _, header := range h.Headers {
		if err := first(checkText("header", header.Name, 256), checkText("header", header.Value, MaxPathSize)); err != nil {
			return err
		}
	}
	return first(checkPort(h.Port), checkText("host", h.Host, 253), checkText("path", h.Path, MaxPathSize))
}

// Check implements [Request].
func (r Update) Check() error {
	if !isObject(r.Resources) {
		return invalid("there are no limits")
	}
	return checkContainer(r.Container)
}
