package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	stdlog "log"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/magikrun/magikpod/internal/printable"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/tests/testimage"
)

// needRoot skips what only root can do: owners, device nodes, trusted attributes, mounts.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: owners, devices and overlay attributes (try: sudo go test)")
	}
}

func openStore(tb testing.TB, dir string, limits Limits) *Store {
	tb.Helper()
	needRoot(tb)
	s, err := Open(dir, Options{Limits: limits, NoSync: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func newStore(tb testing.TB) *Store { return openStore(tb, tb.TempDir(), Limits{}) }

// file is an entry of a tar for tests; the kind is that of a regular file unless it is given or the
// name ends with a slash.
type file struct {
	name, content string
	kind          byte
	link          string
	mode          int64
	uid, gid      int
	pax           map[string]string
	major, minor  int64
}

func tarOf(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Typeflag: f.kind, Name: f.name, Linkname: f.link, Mode: f.mode, Uid: f.uid, Gid: f.gid, PAXRecords: f.pax,
			Size: int64(len(f.content)), Devmajor: f.major, Devminor: f.minor, Format: tar.FormatPAX}
		if f.minor > 1<<20 {
			h.Format = tar.FormatGNU
		}
		if h.Typeflag == 0 {
			if h.Typeflag = tar.TypeReg; strings.HasSuffix(f.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			if h.Mode = 0o644; h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := t.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(t, f.content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := t.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func zstded(tb testing.TB, data []byte) []byte {
	tb.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return z.EncodeAll(data, nil)
}

func load(tb testing.TB, s *Store, archive []byte, tag string) []string {
	tb.Helper()
	refs, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Tag: tag})
	if err != nil {
		tb.Fatal(err)
	}
	return refs
}

func wantKind(tb testing.TB, err error, kind pod.Kind, text string) {
	tb.Helper()
	if pod.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), text) {
		tb.Errorf("got error %v of kind %q, want kind %q and text %q", err, pod.KindOf(err), kind, text)
	}
	if err != nil && (printable.Text(err.Error()) != err.Error() || len(err.Error()) > maxSaid+400) {
		tb.Errorf("the error has several lines, acts on terminals or is too long: %q", err)
	}
}

// contents lists all that is in a store, but for the files that every store has.
func contents(tb testing.TB, s *Store) []string {
	tb.Helper()
	var list []string
	for _, dir := range []string{blobsDir, layersDir, tmpDir} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			tb.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != emptyLayer {
				list = append(list, filepath.Join(dir, e.Name()))
			}
		}
	}
	return list
}

func wantEmpty(tb testing.TB, s *Store) {
	tb.Helper()
	if list := contents(tb, s); len(list) > 0 {
		tb.Errorf("something is left in the store: %v", list)
	}
	s.change.Lock()
	defer s.change.Unlock()
	if len(s.pins) > 0 || len(s.layers) > 0 || len(s.names) > 0 {
		tb.Errorf("something is left in memory: %d pins, %d layers, %d names", len(s.pins), len(s.layers), len(s.names))
	}
}

func busybox(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := testimage.Busybox(&b); err != nil {
		tb.Skip(err)
	}
	return b.Bytes()
}

// imageOf makes an image of layers, given as tars, the lowest first.
func imageOf(tb testing.TB, layers ...[]byte) v1.Image {
	tb.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: hostArch(tb), RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		tb.Fatal(err)
	}
	for _, data := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			tb.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			tb.Fatal(err)
		}
	}
	return img
}

var discardLog = stdlog.New(io.Discard, "", 0)
