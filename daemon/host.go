package daemon

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
)

// Host is what the daemon knows of the host it runs on.
type Host struct {
	Hostname   string
	BootID     string
	IPv4, IPv6 netip.Addr // of the interface of the default route; invalid when there is none
	Kernel     string
	Systemd    string
	Cgroups    string // the controllers of cgroup version 2
	CgroupRoot string
	// MissingControllers are the cgroup controllers that limits need and this host does not have.
	MissingControllers []string
	Version            string              // of magikpod
	Capacity           corev1.ResourceList // cpu and memory
}

// ReadHost looks at the host.
func ReadHost(version, systemd string) Host {
	h := Host{Version: version, Systemd: systemd, CgroupRoot: "/sys/fs/cgroup"}
	if name, err := os.Hostname(); err == nil {
		h.Hostname = strings.ToLower(name)
	}
	h.BootID = strings.TrimSpace(string(readBounded("/proc/sys/kernel/random/boot_id")))
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if _, err := os.Stat(h.CgroupRoot + "/cgroup.controllers"); err != nil {
		h.CgroupRoot += "/unified"
	}
	h.Cgroups = strings.TrimSpace(string(readBounded(h.CgroupRoot + "/cgroup.controllers")))
	h.MissingControllers = missingControllers(h.CgroupRoot)
	h.IPv4, h.IPv6 = outward("udp4", "192.0.2.1:9"), outward("udp6", "[2001:db8::1]:9")
	h.Capacity = corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI)}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.Capacity[corev1.ResourceMemory] = *resource.NewQuantity(int64(info.Totalram)*int64(info.Unit), resource.BinarySI)
	}
	return h
}

// outward is the address that packets to the outside would carry. Nothing is sent: connecting a UDP
// socket only looks the route up.
func outward(network, to string) netip.Addr {
	c, err := net.Dial(network, to)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	addr, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

// networksOf finds what the pods of records want of the network. Of a pod with a damaged record
// nothing is known but that there is one.
func networksOf(l *loaded) func(uid types.UID) (netsetup.PodNetwork, bool) {
	wanted := make(map[types.UID]netsetup.PodNetwork, len(l.records)+len(l.damaged))
	for _, uid := range l.damaged {
		wanted[uid] = netsetup.PodNetwork{UID: uid, Name: string(uid)}
	}
	for _, r := range l.records {
		n, err := netsetup.NetworkOf(r.Pod)
		if err != nil {
			n.Ports = nil // it was not admitted like that
		}
		wanted[r.Pod.UID] = n
	}
	return func(uid types.UID) (netsetup.PodNetwork, bool) {
		n, ok := wanted[uid]
		return n, ok
	}
}

// hostResolvConf is the resolver configuration that pods inherit. A stub resolver on the host's
// loopback cannot be reached from a pod's network namespace: then it is the one behind the stub
// (systemd-resolved(8)).
func hostResolvConf(hostNetwork bool) []byte {
	own := readBounded("/etc/resolv.conf")
	if hostNetwork || !netsetup.OnLoopback(own) {
		return own
	}
	if behind := readBounded("/run/systemd/resolve/resolv.conf"); len(behind) > 0 {
		return behind
	}
	return own
}

// Info describes the daemon and its host.
func (d *Daemon) Info() pod.HostInfo {
	info := pod.HostInfo{
		Version: d.host.Version, GoVersion: goruntime.Version(), OS: osName(), Kernel: d.host.Kernel, Arch: goruntime.GOARCH,
		Systemd: d.host.Systemd, Cgroups: d.host.Cgroups, LogDriver: string(d.config.LogDriver),
		Images: len(d.images.List()), StateDir: d.config.StateDir, RunDir: d.config.RunDir, BootID: d.host.BootID, PID: os.Getpid(), Unenforced: d.host.unenforced(""),
	}
	d.mu.Lock()
	info.Pods = len(d.byUID)
	d.mu.Unlock()
	for _, c := range d.registry.Classes() {
		if c.Name == pod.ClassContainers {
			info.OCIRuntime = c.Reason
		}
	}
	return info
}

// osName is PRETTY_NAME of os-release(5).
func osName() string {
	for line := range bytes.Lines(readBounded("/etc/os-release")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"'`)
		}
	}
	return "Linux"
}
