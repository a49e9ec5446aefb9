package vmm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// kernelOption is a part of Linux that a guest's kernel must have: built in or, if module is set, as a module.
type kernelOption struct {
	name   string
	module bool
}

// maxKernelConfig bounds what is read of a kernel's configuration: they have some hundred kilobytes.
const maxKernelConfig = 4 << 20

// checkKernel says what a kernel lacks by its config-VERSION. Of a kernel that has none nothing is known: it passes.
func checkKernel(monitor, kernel string, needed ...kernelOption) error {
	version, ok := strings.CutPrefix(filepath.Base(kernel), "vmlinuz-")
	if !ok {
		return nil
	}
	f, err := os.Open(filepath.Join(filepath.Dir(kernel), "config-"+version))
	if err != nil {
		return nil
	}
	defer f.Close()
	found := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(f, maxKernelConfig))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			found[name] = value
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("cannot read the configuration of %s: %w", kernel, err)
	}
	for _, o := range needed {
		value := found["CONFIG_"+o.name]
		switch {
		case value == "y", value == "m" && o.module:
		case value == "m":
			return fmt.Errorf("a guest of %s needs a kernel with CONFIG_%s=y, and %s has it as a module", monitor, o.name, kernel)
		default:
			return fmt.Errorf("a guest of %s needs a kernel with CONFIG_%s, and %s has been built without it", monitor, o.name, kernel)
		}
	}
	return nil
}
