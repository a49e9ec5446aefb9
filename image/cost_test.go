package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

// cpuTime is what this process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A small archive must not keep a CPU busy: each kind of layer that does more work than its size
// lets expect. maxCost is far above what they take (see -v), and far below what they took when
// every part of every name was looked up.
func TestCostOfLayers(t *testing.T) {
	const maxCost = 15 * time.Second
	many := func(n int, entry func(i int) file, first ...file) []file {
		for i := range n {
			first = append(first, entry(i))
		}
		return first
	}
	deep := func(n int) string { return strings.Repeat("d/", n) }
	chain := func(n int) []file {
		// l0 -> l1 -> ... -> a directory that is deep itself, each by a long way round.
		links := []file{{name: deep(200)}}
		for i := range n {
			links = append(links, file{name: fmt.Sprintf("l%d", i), kind: tar.TypeSymlink, link: strings.Repeat("d/../", 50) + fmt.Sprintf("l%d", i+1)})
		}
		return append(links, file{name: fmt.Sprintf("l%d", n), kind: tar.TypeSymlink, link: deep(200)})
	}
	sparse := func() []byte {
		// 1 byte of data in a file of 1 GiB, in GNU's old form.
		data := tarOf(t, file{name: "sparse", content: "x"})
		h := data[:512]
		h[156] = tar.TypeGNUSparse
		copy(h[257:], "ustar  \x00")
		copy(h[386:], "00000000000\x0000000000001\x00") // one block: offset 0, one byte
		copy(h[483:], "10000000000\x00")                // the size of all
		fixChecksum(h)
		return data
	}
	xattrs := map[string]string{}
	for i := range 300 {
		xattrs[fmt.Sprintf("%suser.a%d", xattrRecord, i)] = "v"
	}
	bigPAX := map[string]string{"comment": strings.Repeat("x", 900<<10)}
	for _, test := range []struct {
		name string
		data []byte
		text string // of the error; empty: it is taken
	}{
		{"files in 1900 directories", tarOf(t, many(200, func(i int) file { return file{name: deep(1900) + fmt.Sprint(i)} })...), "directories deep"},
		{"files in 250 directories", tarOf(t, many(300, func(i int) file { return file{name: deep(250) + fmt.Sprint(i)} })...), ""},
		{"too many files in 250 directories", tarOf(t, many(400, func(i int) file { return file{name: deep(250) + fmt.Sprint(i)} })...), "too many files in deep directories"},
		{"hard links in 250 directories", tarOf(t, many(150, func(i int) file {
			return file{name: deep(250) + fmt.Sprint(i), kind: tar.TypeLink, link: deep(250) + "f"}
		}, file{name: deep(250) + "f"})...), ""},
		{"whiteouts in 250 directories", tarOf(t, many(300, func(i int) file { return file{name: deep(250) + fmt.Sprintf(".wh.%d", i)} })...), ""},
		{"through 35 links", tarOf(t, many(300, func(i int) file { return file{name: "l0/" + fmt.Sprint(i)} }, chain(35)...)...), ""},
		{"through 200 links", tarOf(t, many(100, func(i int) file { return file{name: "l0/" + fmt.Sprint(i)} }, chain(200)...)...), "too many levels"},
		{"links to nothing", tarOf(t, many(30, func(i int) file {
			if i%2 == 0 {
				return file{name: fmt.Sprintf("l%d", i), kind: tar.TypeSymlink, link: fmt.Sprintf("%d/", i) + deep(100)}
			}
			return file{name: fmt.Sprintf("l%d/f", i-1)}
		})...), ""},
		{"a link to nothing that is deep", tarOf(t, file{name: "l", kind: tar.TypeSymlink, link: deep(1000)}, file{name: "l/f"}), "directories deep"},
		{"3000 files in a directory", tarOf(t, many(3000, func(i int) file { return file{name: fmt.Sprintf("d/%d", i)} })...), ""},
		{"one name 1000 times", tarOf(t, many(1000, func(int) file { return file{name: "f", content: "x"} })...), ""},
		{"a directory that comes and goes", tarOf(t, many(90, func(i int) file {
			return []file{{name: "x/" + deep(50) + "f"}, {name: "x"}, {name: "x/"}}[i%3]
		})...), ""},
		{"opaque marks", tarOf(t, many(5000, func(i int) file { return file{name: "d/.wh..wh..opq"} }, many(1000, func(i int) file { return file{name: fmt.Sprintf("d/%d", i)} })...)...), ""},
		{"large headers", tarOf(t, many(200, func(i int) file { return file{name: fmt.Sprint(i), pax: bigPAX} })...), "larger than"},
		{"many attributes", tarOf(t, many(300, func(i int) file { return file{name: fmt.Sprint(i), pax: xattrs} })...), "*"},
		{"a sparse file", sparse(), "larger than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), Limits{MaxLayerBytes: 1 << 28, MaxPathWork: 20 << 20})
			archive := dockerArchive(t, map[string]v1.Image{"x:1": imageOf(t, tarOf(t, file{name: "base"}), test.data)})
			before := cpuTime(t)
			_, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{})
			took := cpuTime(t) - before
			t.Logf("%.2f s of CPU, archive of %d KB: %.200v", took.Seconds(), len(archive)>>10, err)
			switch {
			case test.text == "*": // as the file system has room for them
			case (err != nil) != (test.text != "") || err != nil && !strings.Contains(err.Error(), test.text):
				t.Errorf("got error %.300v, want %q", err, test.text)
			}
			if took > maxCost {
				t.Errorf("it took %s of CPU, and %s are the limit", took, maxCost)
			}
		})
	}
}

// The same for what is not in the layers.
func TestCostOfManifests(t *testing.T) {
	const maxCost = 15 * time.Second
	list := func(n int, one string) string { return "[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]" }
	layer := tarOf(t, file{name: "f"})
	image := imageOf(t, layer)
	raw, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(config map[string]any)) string {
		var all map[string]any
		if err := json.Unmarshal(raw, &all); err != nil {
			t.Fatal(err)
		}
		config := map[string]any{}
		all["config"] = config
		change(config)
		data, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, test := range []struct {
		name, manifest, config string
		kind                   pod.Kind
	}{
		{"100,000 layers", `[{"Config":"c","Layers":` + list(100_000, `"l"`) + `}]`, string(raw), pod.Exhausted},
		{"100,000 names", `[{"Config":"c","RepoTags":` + list(100_000, `"x:1"`) + `,"Layers":["l"]}]`, string(raw), pod.Exhausted},
		{"50,000 images", list(50_000, `{"Config":"c","Layers":["l"]}`), string(raw), pod.Exhausted},
		{"100,000 variables", `[{"Config":"c","Layers":["l"]}]`, with(func(c map[string]any) { c["Env"] = strings.Split(strings.Repeat("A=b,", 100_000), ",") }), pod.Exhausted},
		{"100,000 arguments", `[{"Config":"c","Layers":["l"]}]`, with(func(c map[string]any) { c["Cmd"] = strings.Split(strings.Repeat("a,", 100_000), ",") }), pod.Exhausted},
		{"a variable of 1 MiB", `[{"Config":"c","Layers":["l"]}]`, with(func(c map[string]any) { c["Env"] = []string{"A=" + strings.Repeat("b", 1<<20)} }), pod.Exhausted},
		{"a user of 1 MiB", `[{"Config":"c","Layers":["l"]}]`, with(func(c map[string]any) { c["User"] = strings.Repeat("b", 1<<20) }), pod.Exhausted},
		{"nested JSON", strings.Repeat("[", 1<<20), string(raw), pod.Invalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			archive := tarOf(t, file{name: "manifest.json", content: test.manifest}, file{name: "c", content: test.config}, file{name: "l", content: string(layer)})
			before := cpuTime(t)
			_, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{})
			took := cpuTime(t) - before
			t.Logf("%.2f s of CPU, archive of %d KB: %.200v", took.Seconds(), len(archive)>>10, err)
			wantKind(t, err, test.kind, "")
			wantEmpty(t, s)
			if took > maxCost {
				t.Errorf("it took %s of CPU, and %s are the limit", took, maxCost)
			}
		})
	}
}
