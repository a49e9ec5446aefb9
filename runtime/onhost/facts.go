package onhost

import (
	"os"
	"strings"
)

// AppArmor says whether the kernel has AppArmor switched on.
func AppArmor() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(enabled), "Y")
}
