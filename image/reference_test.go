package image

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/magikrun/magikpod/pod"
)

func TestNormalize(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for text, want := range map[string]string{
		"busybox":                           "docker.io/library/busybox:latest",
		"busybox:1.36":                      "docker.io/library/busybox:1.36",
		"a/b":                               "docker.io/a/b:latest",
		"docker.io/busybox":                 "docker.io/library/busybox:latest",
		"index.docker.io/a/b:c":             "docker.io/a/b:c",
		"localhost/foo":                     "localhost/foo:latest",
		"localhost:5000/foo:bar":            "localhost:5000/foo:bar",
		"quay.io/a/b/c-d__e.f:T_1.x-":       "quay.io/a/b/c-d__e.f:T_1.x-",
		"[::1]:5000/x":                      "[::1]:5000/x:latest",
		"10.0.0.1/x":                        "10.0.0.1/x:latest",
		"busybox@" + digest:                 "docker.io/library/busybox@" + digest,
		"reg.example:5000/x:tag@" + digest:  "reg.example:5000/x@" + digest,
		"sha256:abcd":                       "docker.io/library/sha256:abcd",
		"registry.k8s.io/pause:3.10":        "registry.k8s.io/pause:3.10",
		"Registry.Example.Com/x":            "Registry.Example.Com/x:latest",
		strings.Repeat("a", 240):            "docker.io/library/" + strings.Repeat("a", 237) + "aaa:latest",
		"x:" + strings.Repeat("t", 128):     "docker.io/library/x:" + strings.Repeat("t", 128),
		"foo_bar.example.com/x" + ":latest": "",
	} {
		got, err := Normalize(text)
		if len(text) == 240 {
			want = "" // with docker.io/library/ it is too long
		}
		if want == "" {
			wantKind(t, err, pod.Invalid, "cannot use image reference")
			continue
		}
		if err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Errorf("%s is not stable: %s, %v", got, again, err)
		}
	}
	for _, text := range []string{"", ":", "@", "/", "a//b", "/a", "a/", "a:", "a:b:c", "-a", "a-", "a..b", "A", "a/B", "a b", "a\nb", "../a", "a/../b", "a@sha256:abc", "a@md5:" + strings.Repeat("a", 32),
		"a@" + strings.ToUpper(digest), digest, digest[7:], "x:" + strings.Repeat("t", 129), "x:.t", "a.b:c/d", "exa mple.com/x", "ä", "a.:5000/x", "http://x.io/y", strings.Repeat("a/", 200) + "a"} {
		if got, err := Normalize(text); err == nil {
			t.Errorf("%q was taken as %s", text, got)
		} else {
			wantKind(t, err, pod.Invalid, "cannot use image reference")
		}
	}
}

// What Normalize returns is stable, and means the same to the registry library, which does the pulling.
func FuzzNormalize(f *testing.F) {
	for _, text := range []string{"busybox", "localhost:5000/a/b:c", "x@sha256:" + strings.Repeat("0", 64), "[::1]/x", "docker.io/library/x", "a/b/c:d", "index.docker.io/x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Normalize(text)
		if err != nil {
			if pod.KindOf(err) != pod.Invalid || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Errorf("%q: %q (%s)", text, err, pod.KindOf(err))
			}
			return
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Fatalf("%q: %q, then %q, %v", text, got, again, err)
		}
		if strings.ContainsAny(got, " \t\n\\'\"$`;|&<>(){}*?!~,") || strings.Contains(got, "..") {
			t.Errorf("%q: %q", text, got)
		}
		ref, err := name.ParseReference(got)
		if err != nil {
			// The library knows less of IPv6 and wants two letters or more.
			return
		}
		want := ref.Name()
		if rest, ok := strings.CutPrefix(want, "index.docker.io/"); ok {
			want = "docker.io/" + rest
		}
		if want != got {
			t.Errorf("%q: the library says %q", got, want)
		}
	})
}
