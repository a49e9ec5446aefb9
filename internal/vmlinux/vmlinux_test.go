package vmlinux

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// bzImage is a self-extracting file around a payload, with two sectors of setup and some code.
func bzImage(payload []byte) []byte {
	image := make([]byte, 3*512+100)
	image[setupSects] = 2
	copy(image[headerMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[bootVersion:], 0x20f)
	binary.LittleEndian.PutUint32(image[payloadOffset:], 100)
	payload = append(bytes.Clone(payload), 1, 2, 3, 4) // the size, which is not looked at
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "a signature"...)
}

// TestUnpack has the programs that the kernel's build uses compress a kernel of more than one block.
func TestUnpack(t *testing.T) {
	kernel := append([]byte("\x7fELF"), bytes.Repeat([]byte("magikpod! "), 1<<20)...)
	for name, argv := range map[string][]string{
		"gzip": {"gzip", "-n", "-9"}, "xz": {"xz", "--check=crc32", "--lzma2=dict=1MiB"}, "zstd": {"zstd", "-22", "--ultra"}, "lz4": {"lz4", "-l", "-9"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Skipf("%s is not installed (try: scripts/deps)", argv[0])
			}
			cmd := exec.Command(argv[0], append(argv[1:], "-c")...)
			cmd.Stdin = bytes.NewReader(kernel)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Unpack(bzImage(packed))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, kernel) {
				t.Errorf("%d bytes came out, which are not the %d that went in", len(got), len(kernel))
			}
		})
	}
}

func TestUnpackBad(t *testing.T) {
	short := bzImage([]byte("\x1f\x8b and so on"))
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":       {nil, "no bzImage"},
		"text":        {bytes.Repeat([]byte("x"), 4096), "no bzImage"},
		"unknown":     {bzImage([]byte("MZ what")), "compression is not known"},
		"cut off":     {short[:len(short)-20], "cut off"},
		"broken gzip": {bzImage([]byte("\x1f\x8b and so on")), "gzip"},
	} {
		if got, err := Unpack(c.image); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d bytes, %v; want an error with %q", name, len(got), err, c.want)
		}
	}
}

// TestUnpackDebian unpacks the kernels that are here.
func TestUnpackDebian(t *testing.T) {
	var kernels []string
	for _, pattern := range []string{"/boot/vmlinuz-*", "../../.cache/trixie-*/boot/vmlinuz-*", os.Getenv("MAGIKPOD_TEST_KERNELS")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		kernels = append(kernels, found...)
	}
	if len(kernels) == 0 {
		t.Skip("there is no kernel here (try: make root-trixie)")
	}
	for _, path := range kernels {
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kernel, err := Unpack(image)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if !bytes.Contains(kernel, []byte("Linux version ")) {
			t.Errorf("%s: %d bytes without a version of Linux", path, len(kernel))
		}
		t.Logf("%s: %d of %d bytes", path, len(image), len(kernel))
	}
}
