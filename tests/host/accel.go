package host

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
)

// EnvAccel is how tests have the VMs of pods run: kvm or tcg; empty stands for tcg. /dev/kvm may be
// there and still run no guest, so KVM is used where somebody says so.
const EnvAccel = "MAGIKVM_ACCEL"

// Accel is kvm or tcg.
func Accel() string { return cmp.Or(os.Getenv(EnvAccel), "tcg") }

// LoadVMModules loads what VMs with KVM need of the kernel of a test VM (tests/vm), where nothing
// has loaded it; a host's kernel is left alone. The CPUs that QEMU emulates are AMD's. A test that
// misses one says so.
func LoadVMModules() {
	if Accel() != "kvm" || os.Getenv(EnvSlowness) == "" {
		return
	}
	for _, module := range []string{"kvm_amd", "vhost_vsock", "tun"} {
		if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "modprobe %s: %v: %s", module, err, out)
		}
	}
}
