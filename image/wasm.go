package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/internal/wasmform"
	"github.com/magikrun/magikpod/pod"
)

// modulePath is where the module of an artifact is in the image that is made of it.
const modulePath = "/module.wasm"

// wasmArtifact returns the layer with the module of a WebAssembly artifact; nil for an ordinary
// image. An artifact has no root file system: the CNCF's "Wasm OCI Artifact" (config
// application/vnd.wasm.config.v0+json, one layer application/wasm), what ORAS and krustlet pushed
// before it, and runwasi's first form (a layer ...component.layer.v0+wasm with a plain config).
func wasmArtifact(m *v1.Manifest) (*v1.Descriptor, error) {
	config := string(m.Config.MediaType)
	if strings.HasPrefix(config, "application/vnd.module.wasm.config.") {
		return nil, pod.Errorf(pod.Unsupported, "it is a filter for a proxy (proxy-wasm), and no WASI command")
	}
	found := config == "application/vnd.wasm.config.v0+json" || config == "application/vnd.wasm.config.v1+json"
	for _, layer := range m.Layers {
		switch layer.MediaType {
		case "application/wasm", "application/vnd.wasm.content.layer.v1+wasm", "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm":
			found = true
		}
	}
	switch {
	case !found:
		return nil, nil
	case len(m.Layers) != 1:
		return nil, pod.Errorf(pod.Unsupported, "it is a WebAssembly artifact of %d layers, and only those of one are supported", len(m.Layers))
	case m.Layers[0].Size > wasmform.MaxModuleBytes:
		return nil, pod.Errorf(pod.Exhausted, "the module has %d bytes, and %d are the limit", m.Layers[0].Size, wasmform.MaxModuleBytes)
	}
	return &m.Layers[0], nil
}

// pullArtifact takes in an artifact: what c has, and the module from b.
func (s *Store) pullArtifact(ctx context.Context, d v1.Descriptor, b blobSource, c candidate) (*entry, error) {
	l := s.lease()
	defer l.release()
	l.pin(d.Digest.String())
	if _, _, err := s.putBlob(ctx, l, b); err != nil {
		return nil, err
	}
	made, err := s.wasmCandidate(ctx, d, func(context.Context) (io.ReadCloser, error) { return os.Open(s.blobPath(d.Digest)) })
	if err != nil {
		return nil, err
	}
	made.origin, made.refs, made.want = c.origin, c.refs, c.want
	entries, err := s.takeIn(ctx, []candidate{made})
	if err != nil {
		return nil, err
	}
	return entries[0], nil
}

// wasmCandidate makes an image of a module: one layer with the module in it, and a config that says
// to run it. The same module makes the same image. open is called more than once.
func (s *Store) wasmCandidate(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (candidate, error) {
	form, err := s.checkModule(ctx, d, open)
	if err != nil {
		return candidate{}, err
	}
	packed := func(ctx context.Context) (io.ReadCloser, error) { return moduleTar(ctx, d.Size, open) }
	r, err := packed(ctx)
	if err != nil {
		return candidate{}, err
	}
	hash := sha256.New()
	size, err := io.Copy(hash, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return candidate{}, err
	}
	var config configFile
	config.OS, config.Architecture = "wasip1", "wasm"
	if form == wasmform.Component {
		config.OS = "wasip2"
	}
	config.Config.Entrypoint = []string{modulePath}
	return oneLayer(config, sumOf(hash), size, packed)
}

// checkModule reads a module once: its digest, its size and its header must be right.
func (s *Store) checkModule(ctx context.Context, d v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) (wasmform.Form, error) {
	r, err := open(ctx)
	if err != nil {
		return wasmform.NotWasm, err
	}
	defer r.Close()
	hash := sha256.New()
	header := make([]byte, wasmform.HeaderBytes)
	n, err := io.ReadFull(r, header)
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return wasmform.NotWasm, err
	}
	hash.Write(header[:n])
	rest, err := io.Copy(hash, io.LimitReader(r, wasmform.MaxModuleBytes+1))
	if err != nil {
		return wasmform.NotWasm, err
	}
	got := sumOf(hash)
	if got != d.Digest || rest+int64(n) != d.Size {
		return wasmform.NotWasm, wrongBlob(d.Digest, got)
	}
	form := wasmform.FormOf(header[:n])
	if s.components && form == wasmform.Component {
		return form, nil
	}
	if err := wasmform.Check(header[:n]); err != nil {
		return form, pod.Errorf(pod.KindOf(err), "the module %s cannot be used: %w", d.Digest, err)
	}
	return form, nil
}

// moduleTar is a tar with nothing but the module in it.
func moduleTar(ctx context.Context, size int64, open func(context.Context) (io.ReadCloser, error)) (io.ReadCloser, error) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(modulePath, "/"), Mode: 0o644, Size: size, Format: tar.FormatUSTAR}); err != nil {
		return nil, err
	}
	module, err := open(ctx)
	if err != nil {
		return nil, err
	}
	const block = 512
	end := make([]byte, (block-size%block)%block+2*block)
	return readCloser{io.MultiReader(&head, io.LimitReader(module, size), bytes.NewReader(end)), module}, nil
}

// startsAsModule says whether a file is WebAssembly, and returns what reads all of it.
func startsAsModule(ctx context.Context, r io.Reader) (io.Reader, bool, error) {
	if f, ok := r.(*os.File); ok {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return r, false, err
			}
			header := make([]byte, wasmform.HeaderBytes)
			n, _ := f.ReadAt(header, at) // the reader of all of it says what is wrong
			return r, wasmform.FormOf(header[:n]) != wasmform.NotWasm, nil
		}
	}
	b := bufio.NewReader(asyncReader(ctx, r))
	header, err := b.Peek(wasmform.HeaderBytes)
	if err != nil && err != io.EOF {
		return nil, false, pod.Errorf(pod.Unavailable, "the archive cannot be read: %w", err)
	}
	return b, wasmform.FormOf(header) != wasmform.NotWasm, nil
}

// moduleCandidate makes an image of a module that r reads. remove removes the copy that the
// candidate reads from.
func (s *Store) moduleCandidate(ctx context.Context, r io.Reader, tag string, want platform) (c candidate, remove func(), err error) {
	if tag == "" {
		return c, nil, invalid("it is a WebAssembly module, which needs a name to be loaded by (--tag)")
	}
	f, err := os.CreateTemp(s.path(tmpDir), "module-")
	if err != nil {
		return c, nil, err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, hash), limitReader(ctx, r, wasmform.MaxModuleBytes, "the module"))
	if err != nil {
		return c, nil, err
	}
	d := v1.Descriptor{Digest: sumOf(hash), Size: size}
	c, err = s.wasmCandidate(ctx, d, func(context.Context) (io.ReadCloser, error) { return os.Open(f.Name()) })
	c.want = want
	return c, func() { _ = os.Remove(f.Name()) }, err
}
