package vmm

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// readTSC returns the time stamp counter (Intel SDM, RDTSC).
func readTSC() uint64

// tscWindow is how long the counter is watched: some hundred nanoseconds of error in it are a few
// parts in a million.
const tscWindow = 50 * time.Millisecond

// HostTSC returns the rate of this host's time stamp counter in kHz, which QEMU hands to emulated
// VMs as it is; 0: there is none. It is measured once, which takes 50 ms.
var HostTSC = sync.OnceValue(func() int {
	begin, ticks := monotonicRaw(), readTSC()
	time.Sleep(tscWindow)
	end, now := monotonicRaw(), readTSC()
	if end <= begin || now <= ticks {
		return 0
	}
	return int((now - ticks) * 1_000_000 / uint64(end-begin))
})

// monotonicRaw returns nanoseconds of a clock that nobody adjusts (clock_gettime(2)); 0 in an error.
func monotonicRaw() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &t); err != nil {
		return 0
	}
	return t.Nano()
}
