package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// diskTimeout is how long a disk that is being attached may take to appear.
const diskTimeout = 15 * time.Second

// findDisk waits for the disk with a serial and returns its device.
func findDisk(ctx context.Context, serial string) (string, error) {
	for {
		device, seen := lookDisk("/sys/block", serial)
		if device != "" {
			// Linux 6.1 shows a disk a moment before it can be opened.
			if f, err := os.Open(device); err == nil {
				_ = f.Close()
				return device, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("cannot find the disk %q: the VM has the disks %s", serial, strings.Join(seen, " "))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lookDisk returns the device of the disk with a serial, empty when there is none, and the serials
// that there are. virtio-blk shows up to 20 bytes of a serial.
func lookDisk(dir, serial string) (device string, seen []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil
	}
	for _, entry := range entries {
		for _, file := range []string{"serial", "device/serial"} { // virtio-blk; NVMe and others
			data, err := os.ReadFile(filepath.Join(dir, entry.Name(), file))
			if err != nil {
				continue
			}
			found := strings.TrimSpace(string(data))
			if found == "" {
				continue
			}
			if found == serial || len(serial) > 20 && found == serial[:20] {
				return "/dev/" + entry.Name(), seen
			}
			seen = append(seen, found)
		}
	}
	return "", seen
}
