package guestimage

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// modules are what every guest needs, unless it is built into the kernel, in the order of loading:
// what the first answer of the agent waits for comes first.
var modules = []string{"virtio_pci", "vmw_vsock_virtio_transport", "virtio_blk", "virtio_net", "erofs", "overlay", "ext4"}

// optionalModules are left out where they are not.
var optionalModules = []string{"virtio_mmio", "virtiofs", "virtio_rng"}

// laterModules are those that the agent loads when it needs them, also left out where they are not:
// a kernel that mounts an image in a file without it has no use for a loop device, and making it
// would take time at the boot.
var laterModules = []string{"loop"}

// maxModule bounds an unpacked module.
const maxModule = 64 << 20

// findModules returns the files of all modules to load at the boot, each after those that it needs,
// and of those for later. dir is /lib/modules/VERSION.
func findModules(dir string) (boot, later []string, err error) {
	needs, err := readDep(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, nil, err
	}
	builtin, err := readBuiltin(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, nil, err
	}
	byName := map[string]string{}
	for path := range needs {
		byName[moduleName(path)] = path
	}
	var all []string
	var add func(path string)
	add = func(path string) {
		if slices.Contains(all, path) {
			return
		}
		// modules.dep(5): the last one must be loaded first.
		for _, need := range slices.Backward(needs[path]) {
			add(need)
		}
		all = append(all, path)
	}
	for _, name := range modules {
		path, ok := byName[name]
		switch {
		case ok:
			add(path)
		case !builtin[name]:
			return nil, nil, fmt.Errorf("the kernel of %s has no %s", dir, name)
		}
	}
	addOptional := func(names []string) {
		for _, name := range names {
			if path, ok := byName[name]; ok {
				add(path)
			}
		}
	}
	addOptional(optionalModules)
	atBoot := len(all)
	addOptional(laterModules)
	for i := range all {
		all[i] = filepath.Join(dir, all[i])
	}
	return all[:atBoot], all[atBoot:], nil
}

// moduleName is the name of the module in a file: dashes in file names are underscores in names.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readDep reads modules.dep: "path: path path".
func readDep(path string) (map[string][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needs := map[string][]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if module, rest, ok := strings.Cut(lines.Text(), ":"); ok {
			needs[module] = strings.Fields(rest)
		}
	}
	return needs, lines.Err()
}

// readBuiltin reads modules.builtin: a path a line.
func readBuiltin(path string) (map[string]bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	builtin := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return builtin, nil
}

// readModule returns a module, unpacked: a guest would do that slowly, and an old one not at all.
func readModule(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch {
	case strings.HasSuffix(path, ".ko"):
		return data, nil
	case strings.HasSuffix(path, ".xz"):
		r, err = xz.NewReader(bytes.NewReader(data))
	case strings.HasSuffix(path, ".gz"):
		r, err = gzip.NewReader(bytes.NewReader(data))
	case strings.HasSuffix(path, ".zst"):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(data)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		err = errors.New("its compression is not known")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot unpack module %s: %w", path, err)
	}
	module, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(module) > maxModule {
		err = fmt.Errorf("it has more than %d bytes", maxModule)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot unpack module %s: %w", path, err)
	}
	return module, nil
}

// compareVersions compares names with numbers in them: 6.9 is less than 6.12.
func compareVersions(a, b string) int {
	split := func(s string) (string, int, string) {
		i := strings.IndexAny(s, "0123456789")
		if i < 0 {
			return s, -1, ""
		}
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		n, _ := strconv.Atoi(s[i:j])
		return s[:i], n, s[j:]
	}
	for a != "" || b != "" {
		at, an, arest := split(a)
		bt, bn, brest := split(b)
		if c := strings.Compare(at, bt); c != 0 {
			return c
		}
		if an != bn {
			return an - bn
		}
		a, b = arest, brest
	}
	return 0
}
