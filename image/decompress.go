package image

import (
	"bufio"
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is the memory that one zstd stream may ask for: that of zstd --long.
const maxZstdWindow = 128 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// A stream may begin with a skippable frame (zstd:chunked and pzstd make such): 0x184D2A50 to
	// 0x184D2A5F, little endian.
	skipMagic = []byte{0x2a, 0x4d, 0x18}
)

// The ways in which a stream can be packed.
const (
	packedNot = iota
	packedGzip
	packedZstd
)

// packing knows by the first four bytes.
func packing(magic []byte) int {
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		return packedGzip
	case bytes.Equal(magic, zstdMagic), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], skipMagic):
		return packedZstd
	}
	return packedNot
}

// decompress unpacks gzip and zstd, and leaves everything else as it is. packed says whether it was.
func decompress(r io.Reader) (content io.ReadCloser, packed bool, err error) {
	b := bufio.NewReaderSize(r, 128<<10)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, false, err
	}
	switch packing(magic) {
	case packedGzip:
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, true, invalid("gzip: %w", err)
		}
		return z, true, nil
	case packedZstd:
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, true, invalid("zstd: %w", err)
		}
		return z.IOReadCloser(), true, nil
	}
	return io.NopCloser(b), false, nil
}
