package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/magikrun/magikpod/pod"
)

// testRegistry is a real registry on 127.0.0.1, in this process. before sees each request first and
// may answer it.
type testRegistry struct {
	host   string
	before atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
	mu     sync.Mutex
	gets   map[string]int // blobs that were fetched
}

func newRegistry(tb testing.TB) *testRegistry {
	tb.Helper()
	reg := &testRegistry{gets: map[string]int{}}
	next := registry.New(registry.Logger(discardLog))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before := reg.before.Load(); before != nil && (*before)(w, r) {
			return
		}
		if i := strings.Index(r.URL.Path, "/blobs/sha256:"); i >= 0 && r.Method == http.MethodGet {
			reg.mu.Lock()
			reg.gets[r.URL.Path[i+len("/blobs/"):]]++
			reg.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	}))
	tb.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		tb.Fatal(err)
	}
	reg.host = u.Host
	return reg
}

func (r *testRegistry) intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.before.Store(&f)
}

func (r *testRegistry) push(tb testing.TB, repo string, what any) {
	tb.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		tb.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(ref, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// pullStore is a store that does not wait long between attempts.
func pullStore(tb testing.TB) *Store {
	s := newStore(tb)
	s.network.backoff = time.Millisecond
	return s
}

// anonymous keeps the tests from the auth files of who runs them.
var anonymous = authn.NewMultiKeychain()

func TestPull(t *testing.T) {
	reg := newRegistry(t)
	img := randomImage(t, hostArch(t), 5)
	reg.push(t, "x/app:v1", img)
	s := pullStore(t)
	var seen []Progress
	ref := reg.host + "/x/app:v1"
	image, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Progress: func(p Progress) { seen = append(seen, p) }})
	if err != nil {
		t.Fatal(err)
	}
	if image.ID != idOf(t, img) || image.Reference != ref || len(image.Rootfs.Layers) != 5 || image.Config.Env[0] != "A=b" {
		t.Errorf("image: %+v", image)
	}
	if len(seen) == 0 || seen[len(seen)-1].Done != seen[len(seen)-1].Total || seen[len(seen)-1].Total < 5*2000 {
		t.Errorf("progress: %v", seen)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{ref, reg.host + "/x/app@" + digest.String()} {
		if got, err := s.Resolve(r); err != nil || got.ID != image.ID {
			t.Errorf("%s: %v, %v", r, got.ID, err)
		}
	}
	checkLayout(t, s.dir, 1)
	// Pulled again, also by digest, nothing is fetched twice.
	for _, r := range []string{ref, reg.host + "/x/app:v1@" + digest.String()} {
		if _, err := s.Pull(context.Background(), r, PullOptions{Keychain: anonymous}); err != nil {
			t.Error(err)
		}
	}
	for digest, n := range reg.gets {
		if n != 1 {
			t.Errorf("%s was fetched %d times", digest, n)
		}
	}
}

func TestPullPicksPlatform(t *testing.T) {
	reg := newRegistry(t)
	index, images := platforms(t)
	reg.push(t, "multi", index)
	reg.push(t, "foreign", images["s390x"])
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := pullStore(t)
	for arch, want := range map[string]string{"": hostArch(t), "linux/riscv64": "riscv64"} {
		image, err := s.Pull(context.Background(), reg.host+"/multi", PullOptions{Keychain: anonymous, Platform: arch})
		if err != nil || image.ID != idOf(t, images[want]) || image.Config.Architecture != want {
			t.Errorf("%s: %+v, %v", arch, image, err)
		}
		byDigest, err := s.Resolve(reg.host + "/multi@" + digest.String())
		if err != nil || byDigest.ID == "" {
			t.Errorf("%s: %v", digest, err)
		}
	}
	if info, _, err := s.Inspect(reg.host + "/multi"); err != nil || info.Digest != digest.String() {
		t.Errorf("%+v, %v; want the digest of the index, %s", info, err, digest)
	}
	_, err = s.Pull(context.Background(), reg.host+"/multi", PullOptions{Keychain: anonymous, Platform: "linux/mips"})
	wantKind(t, err, pod.Unsupported, "linux/mips")
	_, err = s.Pull(context.Background(), reg.host+"/foreign", PullOptions{Keychain: anonymous})
	wantKind(t, err, pod.Unsupported, "linux/s390x")
}

type keychain struct{ user, password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k.user, Password: k.password}, nil
}

func TestPullBasicAuth(t *testing.T) {
	reg := newRegistry(t)
	img := randomImage(t, hostArch(t), 1)
	reg.push(t, "secret", img)
	reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, ok := r.BasicAuth(); ok && user == "u" && password == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	s := pullStore(t)
	for _, k := range []authn.Keychain{anonymous, keychain{"u", "wrong"}} {
		_, err := s.Pull(context.Background(), reg.host+"/secret", PullOptions{Keychain: k})
		wantKind(t, err, pod.Denied, "401")
	}
	wantEmpty(t, s)
	image, err := s.Pull(context.Background(), reg.host+"/secret", PullOptions{Keychain: keychain{"u", "p"}})
	if err != nil || image.ID != idOf(t, img) {
		t.Errorf("%v, %v", image.ID, err)
	}
}

func TestPullTokenAuth(t *testing.T) {
	reg := newRegistry(t)
	reg.push(t, "secret", randomImage(t, hostArch(t), 1))
	reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			fmt.Fprint(w, `{"token":"t0k"}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer t0k" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	s := pullStore(t)
	_, err := s.Pull(context.Background(), reg.host+"/secret", PullOptions{Keychain: keychain{"u", "x"}})
	wantKind(t, err, pod.Denied, "403")
	if _, err := s.Pull(context.Background(), reg.host+"/secret", PullOptions{Keychain: keychain{"u", "p"}}); err != nil {
		t.Error(err)
	}
}

func TestPullErrors(t *testing.T) {
	reg := newRegistry(t)
	reg.push(t, "there", randomImage(t, hostArch(t), 1))
	s := pullStore(t)
	ctx := context.Background()
	for _, ref := range []string{"/nosuch", "/there:nosuch", "/there@sha256:" + strings.Repeat("0", 64)} {
		_, err := s.Pull(ctx, reg.host+ref, PullOptions{Keychain: anonymous})
		wantKind(t, err, pod.NotFound, "cannot pull "+reg.host+ref)
	}
	_, err := s.Pull(ctx, "127.0.0.1:1/x", PullOptions{Keychain: anonymous})
	wantKind(t, err, pod.Unavailable, "refused")
	_, err = s.Pull(ctx, "no such", PullOptions{Keychain: anonymous})
	wantKind(t, err, pod.Invalid, "no such")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Pull(ended, reg.host+"/there", PullOptions{Keychain: anonymous})
	wantKind(t, err, pod.Unavailable, "canceled")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not say that it was cancelled", err)
	}
	wantEmpty(t, s)
}
