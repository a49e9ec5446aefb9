package image

import (
	"context"
	"io"

	"github.com/magikrun/magikpod/pod"
)

// Limits bound what one image may take. A zero field means its default.
type Limits struct {
	MaxLayers        int   // of one image; default and most: 127, what one overlay mount takes
	MaxLayerBytes    int64 // of one layer, unpacked; default 32 GiB
	MaxImageBytes    int64 // of all layers of one image, packed or unpacked, and of an archive, unpacked; default 64 GiB
	MaxFiles         int   // files and directories in one layer, and members of an archive; default 1,000,000
	MaxHeaderBytes   int64 // of the names and attributes of all files of one layer, which are kept in memory; default 128 MiB
	MaxPathWork      int64 // of one layer: parts of names looked up in deep directories and through symlinks; default 64 Mi, which take some 5 s
	MaxManifestBytes int64 // of one manifest, index or config; default 4 MiB
}

const maxLayers = 127

func (l Limits) withDefaults() Limits {
	set := func(p *int64, value int64) {
		if *p <= 0 {
			*p = value
		}
	}
	if l.MaxLayers <= 0 || l.MaxLayers > maxLayers {
		l.MaxLayers = maxLayers
	}
	if l.MaxFiles <= 0 {
		l.MaxFiles = 1_000_000
	}
	set(&l.MaxLayerBytes, 32<<30)
	set(&l.MaxImageBytes, 64<<30)
	set(&l.MaxHeaderBytes, 128<<20)
	set(&l.MaxPathWork, 64<<20)
	set(&l.MaxManifestBytes, 4<<20)
	return l
}

// limitedReader fails with Exhausted, instead of ending, when there is more than the limit, and
// when the context ends.
type limitedReader struct {
	ctx   context.Context
	r     io.Reader
	left  int64
	limit int64
	what  string // "the layer"
}

func limitReader(ctx context.Context, r io.Reader, limit int64, what string) *limitedReader {
	return &limitedReader{ctx: ctx, r: r, left: limit, limit: limit, what: what}
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.ctx.Err() != nil {
		return 0, context.Cause(l.ctx)
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if int64(n) > l.left {
		n = int(l.left)
		err = pod.Errorf(pod.Exhausted, "%s is larger than %d bytes, the limit", l.what, l.limit)
	}
	l.left -= int64(n)
	return n, err
}

// readAll reads a small thing whole, at most limit bytes of it.
func readAll(ctx context.Context, r io.Reader, limit int64, what string) ([]byte, error) {
	return io.ReadAll(limitReader(ctx, r, limit, what))
}
