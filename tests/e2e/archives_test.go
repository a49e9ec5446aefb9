package e2e

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// configured is an image with all that an image's configuration can say, on the layer of the root tar.
func configured(root string) (v1.Image, error) {
	layer, err := tarball.LayerFromFile(root)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	return mutate.Config(img, v1.Config{
		Env:        []string{"PATH=/bin", "FROM_IMAGE=yes", "COLOUR=red"},
		Entrypoint: []string{"/bin/sh", "-c"},
		Cmd:        []string{`echo "$COLOUR $FROM_IMAGE $(id -u):$(id -g) $PWD"`},
		User:       "app",
		WorkingDir: "/home/app",
		StopSignal: "SIGUSR1",
	})
}

// writeArchives writes the configured image to $IMAGES as a docker archive, which names it
// localhost/docker:1, and as an OCI archive, which names it localhost/oci:1, compressed layer and
// all.
func writeArchives(root string) error {
	img, err := configured(root)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference("localhost/docker:1")
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(filepath.Join(images, "docker.tar"), ref, img); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "oci-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "localhost/oci:1"})); err != nil {
		return err
	}
	return writeFile(filepath.Join(images, "oci.tar"), func(f *os.File) error { return tarDir(f, dir) })
}

// tarDir packs the regular files of a directory.
func tarDir(w io.Writer, dir string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = t.Write(data)
		return err
	})
	return errors.Join(err, t.Close())
}

// serveRegistry starts a registry that holds library/app:1, and returns its address. It lives as
// long as the process.
func serveRegistry(root string) (string, error) {
	img, err := configured(root)
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	ref, err := name.ParseReference(l.Addr().String() + "/library/app:1")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), remote.Write(ref, img)
}
