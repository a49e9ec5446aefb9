package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/magikrun/magikpod/pod"
)

// isLayer says whether a request fetches the blob.
func isLayer(r *http.Request, digest string) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+digest)
}

// A connection that breaks in the middle of a layer, or a registry that is busy, is tried again.
func TestPullRetries(t *testing.T) {
	reg := newRegistry(t)
	img := imageOf(t, tarOf(t, file{name: "f", content: strings.Repeat("content ", 20000)}))
	reg.push(t, "x:1", img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]func(w http.ResponseWriter){
		"cut off": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			w.Write(make([]byte, size/2))
			panic(http.ErrAbortHandler)
		},
		"short without a length": func(w http.ResponseWriter) { w.Write(make([]byte, size/2)) },
		"busy":                   func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
		"rate limit":             func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) },
		"stalled": func(w http.ResponseWriter) {
			w.Write(make([]byte, size/2))
			w.(http.Flusher).Flush()
			time.Sleep(2500 * time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if !isLayer(r, digest.String()) || n.Add(1) > 2 {
					return false
				}
				answer(w)
				return true
			})
			s := pullStore(t)
			if name == "stalled" {
				s.network.stall = time.Second
			}
			last := Progress{}
			if _, err := s.Pull(context.Background(), reg.host+"/x:1", PullOptions{Keychain: anonymous, Progress: func(p Progress) { last = p }}); err != nil {
				t.Fatal(err)
			}
			if n.Load() < 3 || last.Done != last.Total {
				t.Errorf("%d attempts; progress %+v", n.Load(), last)
			}
			checkWhole(t, s)
			// For ever is not for ever.
			reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if isLayer(r, digest.String()) {
					answer(w)
					return true
				}
				return false
			})
			if name == "stalled" {
				return // five times
			}
			s = pullStore(t)
			_, err := s.Pull(context.Background(), reg.host+"/x:1", PullOptions{Keychain: anonymous})
			if kind := pod.KindOf(err); kind != pod.Unavailable && kind != pod.Invalid {
				t.Errorf("got %v (%s)", err, kind)
			}
			wantEmpty(t, s)
		})
	}
}

// What a registry sends is believed for its digest only.
func TestHostileRegistry(t *testing.T) {
	reg := newRegistry(t)
	img := randomImage(t, hostArch(t), 1)
	reg.push(t, "x:1", img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	manifestPath := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	manifest := func(w http.ResponseWriter, kind, text string) {
		w.Header().Set("Content-Type", kind)
		fmt.Fprint(w, text)
	}
	const image, index = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	zero := "sha256:" + strings.Repeat("0", 64)
	for _, test := range []struct {
		name   string
		match  func(r *http.Request) bool
		answer func(w http.ResponseWriter)
		kind   pod.Kind
		text   string
	}{
		{"wrong layer", func(r *http.Request) bool { return isLayer(r, digest.String()) }, func(w http.ResponseWriter) { w.Write(make([]byte, size)) }, pod.Invalid, "is wrong"},
		{"endless layer", func(r *http.Request) bool { return isLayer(r, digest.String()) }, func(w http.ResponseWriter) {
			for range 1000 {
				if _, err := w.Write(make([]byte, 100_000)); err != nil {
					return
				}
			}
		}, pod.Invalid, "longer than"},
		{"endless manifest", manifestPath, func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", image)
			for range 1000 {
				if _, err := w.Write(make([]byte, 100_000)); err != nil {
					return
				}
			}
		}, pod.Exhausted, "limit"},
		{"no JSON", manifestPath, func(w http.ResponseWriter) { manifest(w, image, "{") }, pod.Invalid, "manifest"},
		{"text", manifestPath, func(w http.ResponseWriter) { manifest(w, "text/html", "<html>") }, pod.Unsupported, "text/html"},
		{"schema 1", manifestPath, func(w http.ResponseWriter) {
			manifest(w, "application/vnd.docker.distribution.manifest.v1+prettyjws", "{}")
		}, pod.Unsupported, "v1+prettyjws"},
		{"both at once", manifestPath, func(w http.ResponseWriter) { manifest(w, image, `{"schemaVersion":2,"manifests":[]}`) }, pod.Invalid, "at once"},
		{"huge", manifestPath, func(w http.ResponseWriter) {
			manifest(w, image, `{"schemaVersion":2,"config":{"digest":"`+zero+`","size":1},"layers":[{"digest":"`+zero+`","size":9000000000000000000},{"digest":"`+zero+`","size":9000000000000000000}]}`)
		}, pod.Exhausted, "larger"},
		{"negative", manifestPath, func(w http.ResponseWriter) {
			manifest(w, image, `{"schemaVersion":2,"config":{"digest":"`+zero+`","size":1},"layers":[{"digest":"`+zero+`","size":-1}]}`)
		}, pod.Invalid, "-1"},
		{"digest with a path", manifestPath, func(w http.ResponseWriter) {
			manifest(w, image, `{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1}}`)
		}, pod.Invalid, "manifest"},
		{"index of itself", manifestPath, func(w http.ResponseWriter) {
			manifest(w, index, `{"schemaVersion":2,"manifests":[{"mediaType":"`+index+`","digest":"`+zero+`","size":1}]}`)
		}, pod.Internal, "does not match"},
		{"forbidden", manifestPath, func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }, pod.Denied, "403"},
		{"eloquent", manifestPath, func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"no\u001b]0;x\u0007\u009b2J\nmagikpodctl: yes%s"}]}`, strings.Repeat("x", 60000))
		}, pod.Denied, `no\x1b]0;x\a\u009b2J magikpodctl: yes`},
		{"eloquent media type", manifestPath, func(w http.ResponseWriter) {
			manifest(w, image, `{"schemaVersion":2,"mediaType":"evil\u001b]0;x\u0007`+strings.Repeat("x", 60000)+`"}`)
		}, pod.Unsupported, ""},
		{"broken", manifestPath, func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) }, pod.Unavailable, "500"},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if test.match(r) {
					test.answer(w)
					return true
				}
				return false
			})
			s := pullStore(t)
			_, err := s.Pull(context.Background(), reg.host+"/x:1", PullOptions{Keychain: anonymous})
			wantKind(t, err, test.kind, test.text)
			wantEmpty(t, s)
		})
	}
}

// Plain HTTP is for this very host, unless it is asked for.
func TestPlainHTTPMustBeAllowed(t *testing.T) {
	for host, want := range map[string]bool{"127.0.0.1": true, "::1": true, "localhost": true, "10.1.2.3": false, "registry.local": false, "127.0.0.1.example.com": false} {
		if got := isThisHost(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	var reached bool
	g := &guard{next: roundTripper(func(*http.Request) (*http.Response, error) {
		reached = true
		return nil, http.ErrHandlerTimeout
	}), limit: 100}
	for url, want := range map[string]bool{"http://10.1.2.3/v2/": false, "https://10.1.2.3/v2/": true, "http://127.0.0.1/v2/": true} {
		reached = false
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.RoundTrip(r); reached != want || !want && pod.KindOf(err) != pod.Denied {
			t.Errorf("%s: reached %v, %v", url, reached, err)
		}
	}
}

// A certificate that nobody vouches for is not accepted.
func TestUnknownCertificate(t *testing.T) {
	reg := newRegistry(t)
	reg.push(t, "x:1", randomImage(t, hostArch(t), 1))
	target := &url.URL{Scheme: "http", Host: reg.host}
	server := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(target))
	server.Config.ErrorLog = discardLog
	server.StartTLS()
	t.Cleanup(server.Close)
	s := pullStore(t)
	ref := strings.TrimPrefix(server.URL, "https://") + "/x:1"
	_, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous})
	if pod.KindOf(err) == "" {
		t.Error("the certificate was accepted")
	}
	wantEmpty(t, s)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestPullCancelled(t *testing.T) {
	reg := newRegistry(t)
	reg.push(t, "x:1", randomImage(t, hostArch(t), 2))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	})
	s := pullStore(t)
	_, err := s.Pull(ctx, reg.host+"/x:1", PullOptions{Keychain: anonymous})
	wantKind(t, err, pod.Unavailable, "canceled")
	wantEmpty(t, s)
}

func TestKeychainOf(t *testing.T) {
	auth := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	k, err := KeychainOf([]byte(`{"auths":{
		"https://index.docker.io/v1/":{"auth":"` + auth("hub:secret:with:colons") + `"},
		"quay.io":{"username":"whole","password":"p"}, "quay.io/org/":{"username":"org","password":"p"}, "http://reg:5000/v2/":{"identitytoken":"token"}, "empty":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for repo, want := range map[string]authn.AuthConfig{
		"busybox":           {Username: "hub", Password: "secret:with:colons"},
		"quay.io/other/x":   {Username: "whole", Password: "p"},
		"quay.io/org/x":     {Username: "org", Password: "p"},
		"quay.io/organic/x": {Username: "whole", Password: "p"},
		"reg:5000/x":        {IdentityToken: "token"},
		"example.com/x":     {},
		"empty/x":           {Username: "hub", Password: "secret:with:colons"},
	} {
		r, err := name.NewRepository(repo)
		if err != nil {
			t.Fatal(err)
		}
		a, err := k.Resolve(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.Authorization(); err != nil || *got != want {
			t.Errorf("%s: %+v, %v", repo, got, err)
		}
	}
	for _, text := range []string{`{`, `[]`, `{"auths":{"x":{"auth":"!"}}}`, `{"auths":{"x":{"auth":"c2VjcmV0"}}}`, `{"auths":"secret"}`} {
		_, err := KeychainOf([]byte(text))
		wantKind(t, err, pod.Invalid, "")
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error has the secret in it: %v", err)
		}
	}
}

func TestAuthFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.json")
	defer func(old []string) { authFiles = old }(authFiles)
	authFiles = []string{path + ".nosuch", path}
	r, err := name.NewRepository("quay.io/x")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := (fileKeychain{}).Resolve(r); err != nil || a != authn.Anonymous {
		t.Errorf("got %v, %v", a, err)
	}
	if err := os.WriteFile(path, []byte(`{"auths":{"quay.io":{"username":"u","password":"p"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := (fileKeychain{}).Resolve(r)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Authorization(); err != nil || got.Username != "u" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = (fileKeychain{}).Resolve(r)
	wantKind(t, err, pod.Invalid, path)
}
