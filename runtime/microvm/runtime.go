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
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/guestimage"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// The defaults of a [Config].
const (
	DefaultMemory  = 512 * mib
	DefaultCPUs    = 1
	DefaultScratch = 16 << 30
)

// Config says how VMs are made. Empty fields have defaults.
type Config struct {
	// StateDir is where the caches are: kernels and initramfs, disks of images.
	StateDir string
	// ShimPath is magikshim, SupervisorPath magikvmm, and AgentPath magikagent, the agent in the VMs.
	ShimPath, SupervisorPath, AgentPath string

	// Driver is the VMM: qemu or cloud-hypervisor. Empty: the first of them that can be used.
	// Program is its path.
	Driver, Program string
	// Machine is QEMU's: pc, q35 or microvm.
	Machine string
	// Accel is kvm (when empty) or tcg.
	Accel string
	// Kernel is a pattern of file names; empty: /boot/vmlinuz-*. A directory lib/modules/VERSION
	// must stand beside that of the kernel.
	Kernel string
	// Runtime is the OCI runtime that is put into the VMs; empty: crun.
	Runtime string
	// MemoryBytes is what the containers of a pod have together when they have no limit, CPUs how
	// many CPUs a VM without a limit has.
	MemoryBytes int64
	CPUs        int
	// ScratchBytes is the size of the disk with the writable layers and emptyDirs of a pod. It
	// takes no more room than is written.
	ScratchBytes int64
	// PIDsLimit is how many processes and threads a container may have; 0: no limit.
	PIDsLimit int64
}

// Runtime runs pods in VMs. It is an engine.Runtime.
type Runtime struct {
	config Config
	class  pod.ClassInfo
	driver vmm.Driver
	base   vmm.Config // what all VMs have in common
	parts  guestimage.Parts
	guests guestimage.Cache
	images *disks.Cache
	share  string // virtiofsd; empty: there is none
	others string // what is to be said of the VMMs that are not used; empty: nothing

	mu  sync.Mutex
	vms map[string]*vm // by directory
}

// New makes one. That something is missing is no error: Class says what.
func New(config Config) *Runtime {
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
	r := &Runtime{
		config: config, class: pod.ClassInfo{Name: pod.ClassMicroVM}, vms: map[string]*vm{},
		guests: guestimage.Cache{Dir: filepath.Join(config.StateDir, "guests")}, images: disks.NewCache(filepath.Join(config.StateDir, "images")),
	}
	if reason := r.find(); reason != "" {
		r.class.Reason = reason
		return r
	}
	r.class.Available, r.class.Reason = true, r.description()
	return r
}

// find looks for all that VMs need, and returns what is missing.
func (r *Runtime) find() string {
	var missing []string
	for _, look := range []func() error{r.findKernel, r.findDriver, r.findPrograms} {
		if err := look(); err != nil {
			missing = append(missing, err.Error())
		}
	}
	return strings.Join(missing, "; ")
}

// findDriver finds the VMM: the one that is wanted, or the first that can be used.
func (r *Runtime) findDriver() error {
	var reasons []string
	for _, driver := range vmm.Drivers() {
		if r.config.Driver != "" && driver.Name() != r.config.Driver {
			continue
		}
		base := vmm.Config{Driver: driver.Name(), Program: r.config.Program, Machine: r.config.Machine, Accel: r.config.Accel}
		if r.emulated() && base.Machine == "microvm" {
			base.TSCKHz = vmm.HostTSC()
		}
		kind, err := vmm.FindVsock(driver, &base)
		switch {
		case err != nil:
			reasons = append(reasons, driver.Name()+": "+strings.ReplaceAll(err.Error(), "\n", ", "))
		case r.driver != nil:
			reasons = append(reasons, driver.Name()+": it can be used as well")
		default:
			base.Vsock.Kind = kind
			r.driver, r.base = driver, base
			r.share, _ = vmm.FindVirtiofsd() // without it a pod with a hostPath is refused, and the error says why
		}
	}
	switch r.others = strings.Join(reasons, "; "); {
	case r.driver != nil:
		return nil
	case len(reasons) == 0:
		_, err := vmm.Find(r.config.Driver)
		return err
	}
	return pod.Errorf(pod.Unsupported, "%s", r.others)
}

func (r *Runtime) findKernel() (err error) {
	r.parts.Kernel, r.parts.Modules, err = guestimage.FindKernel(r.config.Kernel)
	return err
}

// need is a file that every VM needs, and where it comes from.
type need struct {
	path, remedy string
	device       bool // else a program
}

func (r *Runtime) needs() []need {
	return []need{
		{path: r.config.ShimPath, remedy: "package magikpod"},
		{path: r.config.SupervisorPath, remedy: "package magikpod"},
		{path: r.parts.Init, remedy: "package magikpod"},
		{path: r.parts.Runtime, remedy: "package " + filepath.Base(r.parts.Runtime)},
		{path: disks.Mke2fs, remedy: "package e2fsprogs"},
		{path: "/dev/net/tun", remedy: "modprobe tun", device: true},
	}
}

// findPrograms finds what goes into the VM beside the kernel.
func (r *Runtime) findPrograms() error {
	r.parts.Init, r.parts.Runtime = r.config.AgentPath, r.config.Runtime
	if r.parts.Runtime == "" {
		r.parts.Runtime = "/usr/bin/crun"
	}
	return r.checkNeeds()
}

// checkNeeds looks for what every VM needs. Unsupported: something is missing, and the error says
// what, and how it is had.
func (r *Runtime) checkNeeds() error {
	var missing []string
	for _, n := range r.needs() {
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

// description says what runs the VMs.
func (r *Runtime) description() string {
	text := r.driver.Name() + ", " + r.base.Accel + ", vsock by " + string(r.base.Vsock.Kind) + ", kernel " + filepath.Base(r.parts.Modules)
	if !r.images.Packs() {
		text += ", images not compressed: mkfs.erofs is not installed (package erofs-utils)"
	}
	if r.share == "" {
		text += ", hostPath as a copy to read: " + r.noShare()
	}
	if r.others != "" {
		text += "; " + r.others
	}
	return text
}

// Class says whether the class can be used.
func (r *Runtime) Class() pod.ClassInfo { return r.class }

// emulated says that the VMs' instructions are translated.
func (r *Runtime) emulated() bool { return r.config.Accel == vmm.AccelTCG }

// noShare says why directories of the host cannot be shown in a VM; empty: they can.
func (r *Runtime) noShare() string {
	if r.share != "" || r.driver == nil {
		return ""
	}
	return "virtiofsd is not installed"
}

// maxImages is how many images a VM can have as disks, beside the scratch disk; 0: that is not known.
func (r *Runtime) maxImages() int {
	if r.driver == nil {
		return 0
	}
	return r.driver.Can(&r.base).MaxDisks - 1
}

// manyImages says whether a pod may have more images than there can be disks: as many as its
// containers name, and those of copies.
func (r *Runtime) manyImages(p *corev1.Pod) bool {
	return r.maxImages() > 0 && r.countImages(p) > r.maxImages()
}

func (r *Runtime) countImages(p *corev1.Pod) int {
	images := map[string]bool{}
	for c := range pod.AllContainers(&p.Spec) {
		images[c.Image] = true
	}
	if r.share != "" {
		return len(images)
	}
	return len(images) + len(slices.DeleteFunc(slices.Clone(p.Spec.Volumes), func(v corev1.Volume) bool { return v.HostPath == nil }))
}

// needsShare says whether a pod has directories of the host.
func needsShare(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir == nil && !copied(&v) })
}

// PrepareGuest makes kernel and initramfs of the VMs, unless they are there.
func (r *Runtime) PrepareGuest(ctx context.Context) (guestimage.Image, error) {
	image, err := r.guests.Build(ctx, r.parts)
	if err != nil {
		return image, pod.Errorf(pod.KindOr(err, pod.Unavailable), "%w", err)
	}
	return image, nil
}

// PrepareImage does nothing: the disk of an image is made when its first container starts.
func (r *Runtime) PrepareImage(context.Context, runtime.Image) error { return nil }

// ForgetImages implements engine.Runtime: the disks of images whose layers are gone are removed,
// and what VMs booted from before the kernel, the agent or the OCI runtime were replaced.
func (r *Runtime) ForgetImages(context.Context) error {
	err := r.images.Prune()
	if r.class.Available {
		err = errors.Join(err, r.guests.Prune(r.parts))
	}
	return pod.WithKind(pod.Internal, err)
}
