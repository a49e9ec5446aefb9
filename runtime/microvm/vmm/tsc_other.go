//go:build !amd64

package vmm

// HostTSC returns 0: other processors than x86 have no time stamp counter, and none of the VMs that
// need one.
func HostTSC() int { return 0 }
