package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/guestimage"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// ClassName is the runtime class.
const ClassName = "pod-microvm-containers"

// The defaults of a [Config].
const (
	DefaultMemory  = 512 * mib
	DefaultCPUs    = 1
	DefaultScratch = 16 << 30
)

// Config says how machines are made. Empty fields have defaults.
type Config struct {
	// StateDir is where the caches are: kernels and initramfs, disks of images.
	StateDir string
	// ShimPath is magikshim, SupervisorPath magikvmm, and AgentPath magikagent, the agent in the machines.
	ShimPath, SupervisorPath, AgentPath string

	// Driver is the VMM: qemu or cloud-hypervisor. Empty: the first of them that can be used. Program is its path.
	Driver, Program string
	// Machine is QEMU's: pc, q35 or microvm.
	Machine string
	// Accel is kvm (when empty) or tcg.
	Accel string
	// Kernel is a pattern of file names; empty: /boot/vmlinuz-*. A directory lib/modules/VERSION must stand beside that of the kernel.
	Kernel string
	// Runtime is the OCI runtime that is put into the machines; empty: crun.
	Runtime string
	// MemoryBytes is what the containers of a pod have together when they have no limit, CPUs how many CPUs a machine without a limit has.
	MemoryBytes int64
	CPUs        int
	// ScratchBytes is the size of the disk with the writable layers and emptyDirs of a pod. It takes no more room than is written.
	ScratchBytes int64
	// PIDsLimit is how many processes and threads a container may have; 0: no limit.
	PIDsLimit int64
}

// Launcher runs pods in machines. It is a native.SandboxLauncher.
type Launcher struct {
	config Config
	class  pod.ClassInfo
	driver vmm.Driver
	base   vmm.Config // what all machines have in common
	parts  guestimage.Parts
	guests guestimage.Cache
	images *disks.Cache
	share  string // virtiofsd; empty: there is none
	others string // what is to be said of the VMMs that are not used; empty: nothing

	mu       sync.Mutex
	machines map[string]*machine // by directory
}

// NewLauncher makes one. That something is missing is no error: Class says what.
func NewLauncher(config Config) *Launcher {
	if config.MemoryBytes <= 0 {
		config.MemoryBytes = DefaultMemory
	}
	if config.CPUs <= 0 {
		config.CPUs = DefaultCPUs
	}
	if config.ScratchBytes <= 0 {
		config.ScratchBytes = DefaultScratch
	}
	if config.Accel == "" {
		config.Accel = vmm.AccelKVM
	}
	l := &Launcher{
		config: config, class: pod.ClassInfo{Name: ClassName}, machines: map[string]*machine{},
		guests: guestimage.Cache{Dir: filepath.Join(config.StateDir, "guests")}, images: disks.NewCache(filepath.Join(config.StateDir, "images")),
	}
	if reason := l.find(); reason != "" {
		l.class.Reason = reason
		return l
	}
	l.class.Available, l.class.Reason = true, l.description()
	return l
}

// find looks for all that machines need, and returns what is missing.
func (l *Launcher) find() string {
	var missing []string
	for _, look := range []func() error{l.findKernel, l.findDriver, l.findPrograms} {
		if err := look(); err != nil {
			missing = append(missing, err.Error())
		}
	}
	return strings.Join(missing, "; ")
}

// findDriver finds the VMM: the one that is wanted, or the first that can be used.
func (l *Launcher) findDriver() error {
	var reasons []string
	for _, driver := range vmm.Drivers() {
		if l.config.Driver != "" && driver.Name() != l.config.Driver {
			continue
		}
		base := vmm.Config{Driver: driver.Name(), Program: l.config.Program, Machine: l.config.Machine, Accel: l.config.Accel}
		if l.emulated() && base.Machine == "microvm" {
			base.TSCKHz = vmm.HostTSC()
		}
		kind, err := vmm.FindVsock(driver, &base)
		switch {
		case err != nil:
			reasons = append(reasons, driver.Name()+": "+strings.ReplaceAll(err.Error(), "\n", ", "))
		case l.driver != nil:
			reasons = append(reasons, driver.Name()+": it can be used as well")
		default:
			base.Vsock.Kind = kind
			l.driver, l.base = driver, base
			l.share, _ = vmm.FindVirtiofsd() // without it a pod with a hostPath is refused, and told why
		}
	}
	switch l.others = strings.Join(reasons, "; "); {
	case l.driver != nil:
		return nil
	case len(reasons) == 0:
		_, err := vmm.Find(l.config.Driver)
		return err
	}
	return pod.Errorf(pod.Unsupported, "%s", l.others)
}

func (l *Launcher) findKernel() (err error) {
	l.parts.Kernel, l.parts.Modules, err = guestimage.FindKernel(l.config.Kernel)
	return err
}

// need is a file that every machine needs, and where it comes from.
type need struct {
	path, remedy string
	device       bool // else a program
}

func (l *Launcher) needs() []need {
	return []need{
		{path: l.config.ShimPath, remedy: "package magikpod"},
		{path: l.config.SupervisorPath, remedy: "package magikpod"},
		{path: l.parts.Init, remedy: "package magikpod"},
		{path: l.parts.Runtime, remedy: "package " + filepath.Base(l.parts.Runtime)},
		{path: disks.Mke2fs, remedy: "package e2fsprogs"},
		{path: "/dev/net/tun", remedy: "modprobe tun", device: true},
	}
}

// findPrograms finds what goes into the machine beside the kernel.
func (l *Launcher) findPrograms() error {
	l.parts.Init, l.parts.Runtime = l.config.AgentPath, l.config.Runtime
	if l.parts.Runtime == "" {
		l.parts.Runtime = "/usr/bin/crun"
	}
	return l.checkNeeds()
}

// checkNeeds looks for what every machine needs. Unsupported: something is missing, and the error says what, and how it is had.
func (l *Launcher) checkNeeds() error {
	var missing []string
	for _, n := range l.needs() {
		info, err := os.Stat(n.path)
		switch {
		case err == nil && n.device && info.Mode()&os.ModeCharDevice != 0:
		case err == nil && !n.device && info.Mode().IsRegular() && info.Mode()&0o111 != 0:
		case err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			missing = append(missing, fmt.Sprintf("%s cannot be used: %v", n.path, err))
		default:
			missing = append(missing, fmt.Sprintf("%s is not installed (%s)", n.path, n.remedy))
		}
	}
	if missing == nil {
		return nil
	}
	return pod.Errorf(pod.Unsupported, "%s", strings.Join(missing, "; "))
}

// description tells people what runs the machines.
func (l *Launcher) description() string {
	text := l.driver.Name() + ", " + l.base.Accel + ", vsock by " + string(l.base.Vsock.Kind) + ", kernel " + filepath.Base(l.parts.Modules)
	if !l.images.Packs() {
		text += ", images not compressed: mkfs.erofs is not installed (package erofs-utils)"
	}
	if l.share == "" {
		text += ", hostPath as a copy to read: " + l.noShare()
	}
	if l.others != "" {
		text += "; " + l.others
	}
	return text
}

// Class says whether the class can be used.
func (l *Launcher) Class() pod.ClassInfo { return l.class }

// emulated says that the machines' instructions are translated.
func (l *Launcher) emulated() bool { return l.config.Accel == vmm.AccelTCG }

// noShare says why directories of the host cannot be shown in a machine; empty: they can.
func (l *Launcher) noShare() string {
	if l.share != "" || l.driver == nil {
		return ""
	}
	return "virtiofsd is not installed"
}

// maxImages is how many images a machine can have as disks, beside the scratch disk; 0: that is not known.
func (l *Launcher) maxImages() int {
	if l.driver == nil {
		return 0
	}
	return l.driver.Can(&l.base).MaxDisks - 1
}

// manyImages says whether a pod may have more images than there can be disks: as many as its containers name, and those of copies.
func (l *Launcher) manyImages(p *corev1.Pod) bool {
	return l.maxImages() > 0 && l.countImages(p) > l.maxImages()
}

func (l *Launcher) countImages(p *corev1.Pod) int {
	images := map[string]bool{}
	for c := range pod.AllContainers(&p.Spec) {
		images[c.Image] = true
	}
	if l.share != "" {
		return len(images)
	}
	return len(images) + len(slices.DeleteFunc(slices.Clone(p.Spec.Volumes), func(v corev1.Volume) bool { return v.HostPath == nil }))
}

// needsShare says whether a pod has directories of the host.
func needsShare(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir == nil && !copied(&v) })
}

// PrepareGuest makes kernel and initramfs of the machines, unless they are there.
func (l *Launcher) PrepareGuest(ctx context.Context) (guestimage.Image, error) {
	image, err := l.guests.Build(ctx, l.parts)
	if err != nil {
		return image, pod.Errorf(kindOr(err, pod.Unavailable), "%w", err)
	}
	return image, nil
}

// ForgetImages implements native.SandboxLauncher: the disks of images whose layers are gone are removed, and what machines booted from before the kernel, the agent
// or the OCI runtime were replaced.
func (l *Launcher) ForgetImages(context.Context) error {
	err := l.images.Prune()
	if l.class.Available {
		err = errors.Join(err, l.guests.Prune(l.parts))
	}
	return pod.WithKind(pod.Internal, err)
}
