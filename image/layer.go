package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/layertree"
	"github.com/magikrun/magikpod/pod"
)

// layer is one unpacked layer, as NAME.json has it.
type layer struct {
	ChainID string `json:"chainID"`
	DiffID  string `json:"diffID"`
	Files   int    `json:"files"`
	Bytes   int64  `json:"bytes"`

	name   string
	opaque bool // it hides all layers below it
}

// maxLayerRecord bounds NAME.json, in bytes.
const maxLayerRecord = 1 << 20

// emptyLayer is the directory of an image without layers.
const emptyLayer = "empty"

// chainIDs returns the chain ID of each layer (OCI image-spec, config.md, Layer ChainID).
func chainIDs(diffIDs []v1.Hash) []string {
	chains := make([]string, len(diffIDs))
	for i, d := range diffIDs {
		chains[i] = d.String()
		if i > 0 {
			sum := sha256.Sum256([]byte(chains[i-1] + " " + d.String()))
			chains[i] = "sha256:" + hex.EncodeToString(sum[:])
		}
	}
	return chains
}

// layerPin is the name under which a layer is pinned.
func layerPin(chain string) string { return "chain:" + chain }

// shortName is the name of a layer's directory: 16 characters, so that 127 of them and the paths of
// a pod fit into the options of a mount.
func shortName(chain string) string {
	raw, err := hex.DecodeString(strings.TrimPrefix(chain, "sha256:"))
	if err != nil || len(raw) != sha256.Size {
		panic("internal error: no chain ID: " + chain)
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(raw[:10]))
}

// unpackJob is a layer to unpack.
type unpackJob struct {
	chain   string
	diffID  v1.Hash
	blob    v1.Hash
	parents []string // names of the layers below, the uppermost first
}

// ensureLayer unpacks a layer unless it is there. The layer is pinned by the caller.
func (s *Store) ensureLayer(ctx context.Context, j unpackJob) (*layer, error) {
	unlock, err := s.locks.lock(ctx, layerPin(j.chain))
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.change.Lock()
	have := s.layers[j.chain]
	s.change.Unlock()
	if have != nil {
		return have, nil
	}
	dir, err := os.MkdirTemp(s.path(tmpDir), "layer-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // it has another name by then, if all went well
	l, err := s.unpackTo(ctx, dir, j)
	if err != nil {
		if pod.KindOf(err) == pod.Invalid { // it may have become so here
			err = cmp.Or(s.checkBlob(ctx, j.blob), err)
		}
		return nil, err
	}
	if err := s.syncTree(dir); err != nil {
		return nil, err
	}
	return l, s.adoptLayer(dir, l)
}

// unpackTo unpacks the blob of a layer into dir and verifies what it unpacked.
func (s *Store) unpackTo(ctx context.Context, dir string, j unpackJob) (*layer, error) {
	f, err := os.Open(s.blobPath(j.blob))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, _, err := decompress(f)
	if err != nil {
		return nil, contentError(err)
	}
	defer content.Close()
	parents := make([]string, len(j.parents))
	for i, name := range j.parents {
		parents[i] = s.path(layersDir, name)
	}
	hash := sha256.New()
	r := io.TeeReader(limitReader(ctx, content, s.limits.MaxLayerBytes, "the layer"), hash)
	u := newUnpacker(dir, parents, s.limits)
	if err := u.unpack(ctx, r); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what follows the end of the archive belongs to the digest
		return nil, contentError(err)
	}
	if got := sumOf(hash); got != j.diffID {
		return nil, invalid("the layer unpacks to %s and not to the %s of the config", got, j.diffID)
	}
	return &layer{ChainID: j.chain, DiffID: j.diffID.String(), Files: u.files, Bytes: u.bytes, opaque: layertree.IsOpaque(dir)}, nil
}

// syncTree waits until what was unpacked is on the disk. One syncfs is far cheaper than an fsync of
// each file.
func (s *Store) syncTree(dir string) error {
	if s.noSync {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	return nil
}

// adoptLayer gives a complete layer, which is in tmp, its name. NAME.json comes first: a directory
// without it is damage, and it without a directory is what a crash leaves.
func (s *Store) adoptLayer(dir string, l *layer) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	l.name = shortName(l.ChainID)
	for taken := s.names[l.name]; taken != "" && taken != l.ChainID; taken = s.names[l.name] {
		l.name += "x" // another chain ID with the same first ten bytes: somebody has tried hard
	}
	if err := s.writeFile(s.path(layersDir, l.name+".json"), data); err != nil {
		return err
	}
	if err := os.Rename(dir, s.path(layersDir, l.name)); err != nil {
		_ = os.Remove(s.path(layersDir, l.name+".json"))
		return err
	}
	s.layers[l.ChainID], s.names[l.name] = l, l.ChainID
	return s.syncDir(s.path(layersDir))
}

// readLayer reads the record of an unpacked layer.
func (s *Store) readLayer(name string) (*layer, error) {
	l := &layer{name: name}
	if err := atomicfile.LoadJSON(s.path(layersDir, name+".json"), maxLayerRecord, l); err != nil {
		return nil, err
	}
	if _, err := v1.NewHash(l.ChainID); err != nil || !strings.HasPrefix(l.ChainID, "sha256:") || !strings.HasPrefix(name, shortName(l.ChainID)) {
		return nil, errors.New("it is the record of another layer")
	}
	fi, err := os.Lstat(s.path(layersDir, name))
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, errors.New("it is no directory")
	}
	l.opaque = layertree.IsOpaque(s.path(layersDir, name))
	return l, nil
}
