// Package vmlinux takes Linux kernels out of their self-extracting files: an emulated VM would
// unpack its kernel for seconds, at each boot.
package vmlinux

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// maxKernel bounds an unpacked kernel: Debian's have about 50 MB.
const maxKernel = 1 << 30

// The setup header (Documentation/arch/x86/boot.rst): offsets in the file.
const (
	setupSects    = 0x1f1
	headerMagic   = 0x202
	bootVersion   = 0x206
	payloadOffset = 0x248 // from the beginning of the protected-mode code
	payloadLength = 0x24c
	headerEnd     = 0x250
)

// Unpack returns the ELF file in a bzImage of x86.
func Unpack(image []byte) ([]byte, error) {
	payload, err := payload(image)
	if err != nil {
		return nil, fmt.Errorf("cannot unpack kernel: %w", err)
	}
	kernel, err := decompress(payload)
	if err != nil {
		return nil, fmt.Errorf("cannot unpack kernel: %w", err)
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, errors.New("cannot unpack kernel: what is in it is no ELF file")
	}
	return kernel, nil
}

// payload returns the compressed kernel.
func payload(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[headerMagic:headerMagic+4]) != "HdrS" {
		return nil, errors.New("it is no bzImage")
	}
	if version := binary.LittleEndian.Uint16(image[bootVersion:]); version < 0x208 {
		return nil, fmt.Errorf("its boot protocol is %#x, too old", version)
	}
	sectors := uint64(image[setupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if end > uint64(len(image)) {
		return nil, errors.New("it is cut off")
	}
	return image[start:end], nil
}

// decompress unpacks data. The last four bytes are the unpacked size, which the kernel's build
// appends (scripts/Makefile.lib, size_append) unless the format ends with it.
func decompress(data []byte) ([]byte, error) {
	withoutSize := bytes.NewReader(data[:max(len(data)-4, 0)])
	var r io.Reader
	var err error
	source := bytes.NewReader(data)
	switch {
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(source); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(data, []byte("\x1f\x8b")):
		var z *gzip.Reader
		if z, err = gzip.NewReader(source); err == nil {
			z.Multistream(false)
			r = z
		}
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		r, err = xz.ReaderConfig{SingleStream: true}.NewReader(withoutSize)
	case bytes.HasPrefix(data, []byte("\x02\x21\x4c\x18")): // the "legacy" format
		r = lz4.NewReader(withoutSize)
	default:
		return nil, fmt.Errorf("its compression is not known (it begins with % x)", data[:min(len(data), 6)])
	}
	if err != nil {
		return nil, err
	}
	var kernel bytes.Buffer
	_, err = io.Copy(&kernel, io.LimitReader(r, maxKernel+1))
	if err != nil && !errors.Is(err, zstd.ErrMagicMismatch) {
		return nil, err
	}
	if kernel.Len() > maxKernel {
		return nil, fmt.Errorf("it has more than %d bytes", maxKernel)
	}
	return kernel.Bytes(), nil
}
