package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/magikrun/magikpod/pod"
)

// canary is a store in a directory in which nothing else may appear or change.
func canary(t *testing.T) (s *Store, check func()) {
	t.Helper()
	parent := t.TempDir()
	victim := filepath.Join(parent, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	return openStore(t, filepath.Join(parent, "a/b/images"), Limits{}), func() {
		t.Helper()
		for _, dir := range []string{"", "a", "a/b"} {
			list, err := os.ReadDir(filepath.Join(parent, dir))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				switch e.Name() {
				case "victim", "a", "b", "images":
				default:
					t.Errorf("%s appeared outside of the store", filepath.Join(dir, e.Name()))
				}
			}
		}
		list, err := os.ReadDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 5 {
			t.Errorf("something appeared in the store: %v", list)
		}
		fi, err := os.Lstat(victim)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(victim); err != nil || string(data) != "untouched" || fi.Mode() != 0o600 {
			t.Errorf("the victim was changed: %q, %v, %v", data, fi.Mode(), err)
		}
		for _, path := range []string{"/escape", "/tmp/escape", "/etc/escape"} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s appeared", path)
				os.Remove(path)
			}
		}
	}
}

func TestLayersDoNotEscape(t *testing.T) {
	up := strings.Repeat("../", 12)
	for _, test := range []struct {
		name  string
		files []file
	}{
		{"dots", []file{{name: "../escape"}, {name: up + "escape"}, {name: "a/../../../escape"}, {name: "/escape"}}},
		{"absolute link", []file{{name: "l", kind: tar.TypeSymlink, link: "/tmp"}, {name: "l/escape"}}},
		{"link up", []file{{name: "l", kind: tar.TypeSymlink, link: up}, {name: "l/escape"}, {name: "l/tmp/escape"}}},
		{"link chain", []file{{name: "a/"}, {name: "a/l", kind: tar.TypeSymlink, link: ".."}, {name: "a/m", kind: tar.TypeSymlink, link: "l/.."}, {name: "a/m/../escape"}}},
		{"link replaced by its file", []file{{name: "victim", kind: tar.TypeSymlink, link: "../../../../../victim"}, {name: "victim", content: "changed"}}},
		{"directory over a link", []file{{name: "l", kind: tar.TypeSymlink, link: "/tmp"}, {name: "l/", mode: 0o700}, {name: "l/escape"}}},
		{"mode through a link", []file{{name: "l", kind: tar.TypeSymlink, link: "../../../../../victim", mode: 0o777, uid: 5}}},
		{"whiteout through a link", []file{{name: "l", kind: tar.TypeSymlink, link: "../../../../.."}, {name: "l/.wh.victim"}, {name: "l/.wh..wh..opq"}}},
		{"many whiteouts", []file{{name: "a/"}, {name: "a/.wh.b"}, {name: "a/.wh.c"}}},
		{"attributes through a link", []file{{name: "l", kind: tar.TypeSymlink, link: "../../../../../victim", pax: map[string]string{xattrRecord + "security.x": "y"}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, check := canary(t)
			_, err := s.Load(context.Background(), bytes.NewReader(tarOf(t, test.files...)), LoadOptions{Tag: "x"})
			if err != nil {
				wantKind(t, err, pod.Invalid, "cannot load archive")
				wantEmpty(t, s)
			}
			check()
			s.Close()
			check()
		})
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	huge := tarOf(t, file{name: "f", content: "x"})
	copy(huge[124:136], "\x80\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00") // the size, 1 GiB, in base 256
	fixChecksum(huge[:512])
	for _, test := range []struct {
		name string
		data []byte
		kind pod.Kind
		text string
	}{
		{"hard link out", tarOf(t, file{name: "h", kind: tar.TypeLink, link: "../../../../../victim"}), pod.Invalid, ""},
		{"hard link to nothing", tarOf(t, file{name: "h", kind: tar.TypeLink, link: "nosuch"}), pod.Invalid, ""},
		{"whiteout of ..", tarOf(t, file{name: "a/"}, file{name: "a/.wh..."}, file{name: "a/.wh..", content: ""}), pod.Invalid, "whiteout"},
		{"whiteout of nothing", tarOf(t, file{name: "a/"}, file{name: "a/.wh."}), pod.Invalid, "whiteout"},
		{"owner -2", tarOf(t, file{name: "f", uid: -2}), pod.Invalid, "owner"},
		{"owner 2^32", tarOf(t, file{name: "f", gid: 1 << 32}), pod.Invalid, "owner"},
		{"owner 2^32-1", tarOf(t, file{name: "f", gid: 1<<32 - 1}), pod.Invalid, "owner"},
		{"device number", tarOf(t, file{name: "c", kind: tar.TypeChar, major: 1, minor: 1 << 40}), pod.Invalid, "device"},
		{"below a file", tarOf(t, file{name: "f"}, file{name: "f/g"}), pod.Invalid, ""},
		{"long name", tarOf(t, file{name: strings.Repeat("x", 300)}), pod.Invalid, "name too long"},
		{"long path", tarOf(t, file{name: strings.Repeat("x/", 3000)}), pod.Invalid, "directories deep"},
		{"unknown kind", tarOf(t, file{name: "f", kind: 'Z'}), pod.Invalid, ""},
		{"size beyond the end", huge, pod.Invalid, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, check := canary(t)
			archive := dockerArchive(t, map[string]v1.Image{"x:1": imageOf(t, tarOf(t, file{name: "base"}), test.data)})
			_, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{})
			wantKind(t, err, test.kind, test.text)
			wantEmpty(t, s)
			check()
		})
	}
}

// fixChecksum makes a changed tar header valid again.
func fixChecksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
}

// paxHeader makes an extended header that archive/tar would not write.
func paxHeader(tb testing.TB, records ...string) []byte {
	body := ""
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprintf("%d %s\n", n, r)) != n {
			n++
		}
		body += fmt.Sprintf("%d %s\n", n, r)
	}
	data := tarOf(tb, file{name: "PaxHeaders.0", content: body})
	data[156] = tar.TypeXHeader
	fixChecksum(data[:512])
	return data[:len(data)-1024]
}

type endless struct{ pattern []byte }

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], e.pattern)
	}
	return n, nil
}

func TestHostileArchivesAreRefused(t *testing.T) {
	root := tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: strings.Repeat("x", 2000)})
	manifest := func(text string, files ...file) []byte {
		return tarOf(t, append([]file{{name: "manifest.json", content: text}}, files...)...)
	}
	oci := func(index string, files ...file) []byte {
		return tarOf(t, append([]file{{name: "oci-layout", content: "{}"}, {name: "index.json", content: index}}, files...)...)
	}
	config := `{"os":"linux","rootfs":{"diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`
	bigPAX := tarOf(t, file{name: "f", content: strings.Repeat("x", 2<<20)})
	bigPAX[156] = tar.TypeXHeader
	fixChecksum(bigPAX[:512])
	for _, test := range []struct {
		name string
		r    io.Reader
		kind pod.Kind
		text string
	}{
		{"empty", bytes.NewReader(nil), pod.Invalid, "empty"},
		{"text", strings.NewReader(strings.Repeat("hello ", 1000)), pod.Invalid, "no archive"},
		{"endless zeros", endless{[]byte{0}}, pod.Invalid, "no archive"},
		{"endless text", endless{[]byte("yes\n")}, pod.Invalid, "no archive"},
		{"packed text", bytes.NewReader(gzipped(t, []byte("hello"))), pod.Invalid, "no archive"},
		{"cut off in a file", bytes.NewReader(root[:2000]), pod.Invalid, "tar"},
		{"cut off between files", bytes.NewReader(root[:512]), pod.Invalid, "cut off"},
		{"cut off gzip", bytes.NewReader(gzipped(t, root)[:60]), pod.Invalid, ""},
		{"cut off zstd", bytes.NewReader(zstded(t, root)[:60]), pod.Invalid, ""},
		{"gzip header only", bytes.NewReader(gzipMagic), pod.Invalid, ""},
		{"huge header", bytes.NewReader(bigPAX), pod.Invalid, "tar"},
		{"bad JSON", bytes.NewReader(manifest(`[{`)), pod.Invalid, "manifest.json"},
		{"no image", bytes.NewReader(manifest(`[]`)), pod.Invalid, "no image"},
		{"no config", bytes.NewReader(manifest(`[{"Config":"c.json"}]`)), pod.Invalid, "c.json"},
		{"config outside", bytes.NewReader(manifest(`[{"Config":"../../../../etc/passwd"}]`)), pod.Invalid, "passwd"},
		{"config a link out", bytes.NewReader(manifest(`[{"Config":"c"}]`, file{name: "c", kind: tar.TypeSymlink, link: "/etc/passwd"})), pod.Invalid, "no file"},
		{"config a link up", bytes.NewReader(manifest(`[{"Config":"c"}]`, file{name: "c", kind: tar.TypeSymlink, link: "../../../../../../etc/passwd"})), pod.Invalid, `no "c"`},
		{"config a link to itself", bytes.NewReader(manifest(`[{"Config":"c"}]`, file{name: "c", kind: tar.TypeSymlink, link: "c"})), pod.Invalid, "too many links"},
		{"config a device", bytes.NewReader(manifest(`[{"Config":"c"}]`, file{name: "c", kind: tar.TypeChar, major: 1, minor: 5})), pod.Invalid, "no file"},
		{"config a directory", bytes.NewReader(manifest(`[{"Config":"c"}]`, file{name: "c/"})), pod.Invalid, "no file"},
		{"layer outside", bytes.NewReader(manifest(`[{"Config":"c","Layers":["/etc/passwd"]}]`, file{name: "c", content: config})), pod.Invalid, "passwd"},
		{"layer count", bytes.NewReader(manifest(`[{"Config":"c","Layers":[]}]`, file{name: "c", content: config})), pod.Invalid, "names 1 layers"},
		{"wrong diffID", bytes.NewReader(manifest(`[{"Config":"c","Layers":["l"]}]`, file{name: "c", content: config}, file{name: "l", content: string(root)})), pod.Invalid, "unpacks to"},
		{"bad name", bytes.NewReader(manifest(`[{"Config":"c","RepoTags":["../x"],"Layers":["l"]}]`, file{name: "c", content: config}, file{name: "l", content: string(root)})), pod.Invalid, "../x"},
		{"sha512 diffID", bytes.NewReader(manifest(`[{"Config":"c","Layers":["l"]}]`, file{name: "c", content: strings.Replace(strings.Replace(config, "sha256", "sha512", 1), "000", "000"+strings.Repeat("0", 64), 1)}, file{name: "l", content: string(root)})), pod.Unsupported, "sha512"},
		{"huge manifest", bytes.NewReader(manifest(strings.Repeat(" ", 5<<20))), pod.Exhausted, "limit"},
		{"bad index", bytes.NewReader(oci(`{`)), pod.Invalid, "index"},
		{"empty index", bytes.NewReader(oci(`{"schemaVersion":2,"manifests":[]}`)), pod.Invalid, "no image"},
		{"digest with a path", bytes.NewReader(oci(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../../etc/passwd","size":1}]}`)), pod.Invalid, "index"},
		{"blob missing", bytes.NewReader(oci(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}]}`)), pod.Invalid, "has no"},
		{"both at once", bytes.NewReader(oci(`{"schemaVersion":2,"manifests":[],"layers":[]}`)), pod.Invalid, "at once"},
		{"no index", bytes.NewReader(tarOf(t, file{name: "oci-layout", content: "{}"})), pod.Invalid, "without index.json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, check := canary(t)
			_, err := s.Load(context.Background(), test.r, LoadOptions{Tag: map[bool]string{true: "x"}[!strings.Contains(test.name, "name")]})
			wantKind(t, err, test.kind, test.text)
			wantEmpty(t, s)
			check()
		})
	}
}

// A blob of an OCI archive that is not what its name says is found out, whichever it is.
func TestWrongBlobs(t *testing.T) {
	img := randomImage(t, hostArch(t), 2)
	dir := t.TempDir()
	data := ociArchive(t, func(p layout.Path) error {
		dir = string(p)
		return p.AppendImage(img)
	})
	load(t, newStore(t), data, "x")
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil || len(blobs) != 4 {
		t.Fatal(blobs, err)
	}
	for _, b := range blobs {
		path := filepath.Join(dir, "blobs/sha256", b.Name())
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(good)
		flipped[len(flipped)/2] ^= 1
		for name, bad := range map[string][]byte{"flipped": flipped, "short": good[:len(good)-1], "long": append(bytes.Clone(good), 'x'), "empty": {}} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			s := newStore(t)
			_, err := s.Load(context.Background(), bytes.NewReader(tarDir(t, dir)), LoadOptions{Tag: "x"})
			wantKind(t, err, pod.Invalid, "cannot load archive")
			if err == nil {
				t.Errorf("%s %s was taken", b.Name(), name)
			}
			wantEmpty(t, s)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimits(t *testing.T) {
	zeros := make([]byte, 8<<20)
	bomb := tarOf(t, file{name: "zeros", content: string(zeros)})
	var many []file
	for i := range 300 {
		many = append(many, file{name: fmt.Sprintf("d/%s%d", strings.Repeat("x", i%100), i)})
	}
	deep := tarOf(t, file{name: strings.Repeat("d/", 150) + "f"})
	// A file of 1 TiB of which one byte is there (GNU's sparse format 1.0).
	sparse := paxHeader(t, "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=1099511627776")
	sparse = append(sparse, tarOf(t, file{name: "GNUSparseFile.0/s", content: "1\n0\n1\n" + strings.Repeat("\x00", 506) + "x"})...)
	for _, test := range []struct {
		name   string
		limits Limits
		layer  []byte
		text   string
	}{
		{"layer", Limits{MaxLayerBytes: 1 << 20}, gzipped(t, bomb), "layer"},
		{"layer, zstd", Limits{MaxLayerBytes: 1 << 20}, zstded(t, bomb), "layer"},
		{"layer, trailing zeros", Limits{MaxLayerBytes: 1 << 20}, gzipped(t, append(tarOf(t, file{name: "f"}), zeros...)), "layer"},
		{"image", Limits{MaxImageBytes: 1 << 20}, gzipped(t, bomb), "image"},
		{"files", Limits{MaxFiles: 100}, tarOf(t, many...), "100 files"},
		{"implied directories", Limits{MaxFiles: 100}, deep, "100 files"},
		{"names", Limits{MaxHeaderBytes: 20000}, tarOf(t, many...), "20000 bytes"},
		{"sparse", Limits{}, sparse, "files of the layer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			img := imageOf(t, test.layer)
			archive := ociArchive(t, func(p layout.Path) error { return p.AppendImage(img) })
			s := openStore(t, t.TempDir(), test.limits)
			_, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Tag: "x"})
			wantKind(t, err, pod.Exhausted, test.text)
			wantEmpty(t, s)
		})
	}
	s := openStore(t, t.TempDir(), Limits{MaxImageBytes: 1 << 20})
	for name, r := range map[string]io.Reader{"plain": bytes.NewReader(bomb), "packed": bytes.NewReader(gzipped(t, bomb)),
		"endless": io.MultiReader(bytes.NewReader(bomb[:512]), endless{[]byte("x")})} {
		_, err := s.Load(context.Background(), r, LoadOptions{Tag: "x"})
		wantKind(t, err, pod.Exhausted, "archive is larger")
		wantEmpty(t, s)
		_ = name
	}
}
