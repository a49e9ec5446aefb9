package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
)

// blobSource is where the bytes of a blob come from.
type blobSource struct {
	// digest and size are what the bytes must have; the zero digest with size -1 takes what comes.
	digest v1.Hash
	size   int64
	open   func(ctx context.Context) (io.ReadCloser, error)
	// retry says whether to try again after an error of reading, and waits; nil: never.
	retry func(ctx context.Context, attempt int, err error) bool
	// progress gets the number of bytes as they come, and takes them back (negative) before another
	// attempt.
	progress func(n int64)
}

func (s *Store) blobPath(d v1.Hash) string { return s.path(blobsDir, d.Hex) }

// hasBlob says whether the blob is there. It was verified when it was written.
func (s *Store) hasBlob(d v1.Hash, size int64) bool {
	fi, err := os.Lstat(s.blobPath(d))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == size
}

// putBlob stores a blob unless it is there, and returns its digest and size. A blob whose digest is
// known before must be pinned by l.
func (s *Store) putBlob(ctx context.Context, l *lease, b blobSource) (v1.Hash, int64, error) {
	if b.digest.Hex != "" {
		unlock, err := s.locks.lock(ctx, b.digest.String())
		if err != nil {
			return b.digest, 0, err
		}
		defer unlock()
		if s.hasBlob(b.digest, b.size) {
			if b.progress != nil {
				b.progress(b.size)
			}
			return b.digest, b.size, nil
		}
	}
	f, err := os.CreateTemp(s.path(tmpDir), "blob-")
	if err != nil {
		return b.digest, 0, err
	}
	defer os.Remove(f.Name()) // it has another name by then, if all went well
	defer f.Close()
	digest, size, err := s.fillBlob(ctx, f, b)
	if err != nil {
		return b.digest, 0, err
	}
	l.pin(digest.String())
	return digest, size, s.adoptFile(f, s.blobPath(digest))
}

// fillBlob writes the blob to f, as often as its source asks for.
func (s *Store) fillBlob(ctx context.Context, f *os.File, b blobSource) (v1.Hash, int64, error) {
	for attempt := 1; ; attempt++ {
		digest, size, again, err := s.tryBlob(ctx, f, b)
		if err == nil {
			return digest, size, nil
		}
		if b.progress != nil {
			b.progress(-size)
		}
		if !again || b.retry == nil || !b.retry(ctx, attempt, err) {
			return digest, size, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return digest, size, err
		}
		if err := f.Truncate(0); err != nil {
			return digest, size, err
		}
	}
}

// tryBlob copies the blob once. again: the error is one of the source, which may do better next time.
func (s *Store) tryBlob(ctx context.Context, f *os.File, b blobSource) (digest v1.Hash, size int64, again bool, err error) {
	r, err := b.open(ctx)
	if err != nil {
		return digest, 0, true, err
	}
	defer r.Close()
	limit := s.limits.MaxImageBytes
	if b.size >= 0 {
		limit = b.size
	}
	hash := sha256.New()
	buf := make([]byte, 128<<10)
	var readErr error
	for readErr == nil {
		if ctx.Err() != nil {
			return digest, size, false, context.Cause(ctx)
		}
		var n int
		n, readErr = r.Read(buf)
		if size+int64(n) > limit {
			return digest, size, false, tooLong(b, limit)
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return digest, size, false, err
		}
		hash.Write(buf[:n])
		size += int64(n)
		if b.progress != nil && n > 0 {
			b.progress(int64(n))
		}
	}
	digest = sumOf(hash)
	switch {
	case ctx.Err() != nil:
		return digest, size, false, context.Cause(ctx)
	case b.size >= 0 && size == b.size && digest == b.digest:
		return digest, size, false, nil // whatever the end of the connection says
	case b.size > size && readErr == io.EOF:
		return digest, size, true, invalid("the blob %s has %d bytes and should have %d: %w", b.digest, size, b.size, io.ErrUnexpectedEOF)
	case b.size == size:
		return digest, size, false, wrongBlob(b.digest, digest)
	case readErr != io.EOF:
		return digest, size, true, readErr
	}
	return digest, size, false, nil
}

func tooLong(b blobSource, limit int64) error {
	if b.size >= 0 {
		return invalid("the blob %s is longer than its %d bytes", b.digest, b.size)
	}
	return pod.Errorf(pod.Exhausted, "a blob is larger than %d bytes, the limit", limit)
}

// adoptFile gives a complete file, which is in tmp, its name.
func (s *Store) adoptFile(f *os.File, path string) error {
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if !s.noSync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return s.syncDir(filepath.Dir(path))
}

func (s *Store) syncDir(dir string) error {
	if s.noSync {
		return nil
	}
	return atomicfile.SyncDir(dir)
}

// putBytes stores a small blob: a manifest or config.
func (s *Store) putBytes(l *lease, data []byte) (v1.Hash, error) {
	d := digestOf(data)
	l.pin(d.String())
	if s.hasBlob(d, int64(len(data))) {
		return d, nil
	}
	return d, s.writeFile(s.blobPath(d), data)
}

// writeFile replaces a file of the store. The unfinished one is in tmp, where Open clears it away.
func (s *Store) writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(s.path(tmpDir), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return s.adoptFile(f, path)
}

// readBlob reads a small blob and verifies it.
func (s *Store) readBlob(d v1.Hash) ([]byte, error) {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAll(context.Background(), f, s.limits.MaxManifestBytes, "the blob "+d.String())
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d {
		return nil, errBadBlob{d, fmt.Errorf("it has the digest %s", got)}
	}
	return data, nil
}

// checkBlob reads a blob that was found wanting, and sets it aside if it is damaged, so that the
// next Pull or Load brings it anew.
func (s *Store) checkBlob(ctx context.Context, d v1.Hash) error {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, limitReader(ctx, f, s.limits.MaxImageBytes, "the blob")); err != nil {
		return err
	}
	if sumOf(hash) == d {
		return nil
	}
	bad, err := s.renameBad(blobsDir, d.Hex)
	if err != nil {
		return err
	}
	return errBadBlob{d, fmt.Errorf("it was renamed to %s; pull or load the image again", bad)}
}

// errBadBlob is a blob of the store that is not what its name says.
type errBadBlob struct {
	digest v1.Hash
	err    error
}

func (e errBadBlob) Error() string { return fmt.Sprintf("the blob %s is damaged: %v", e.digest, e.err) }
func (e errBadBlob) Unwrap() error { return e.err }

func asBadBlob(err error) (errBadBlob, bool) { return errors.AsType[errBadBlob](err) }

// digestOf is the digest of data.
func digestOf(data []byte) v1.Hash {
	h := sha256.New()
	h.Write(data)
	return sumOf(h)
}

// sumOf is the digest of what was written to a SHA-256 hash.
func sumOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// wrongBlob says that a blob does not have the digest that it should have.
func wrongBlob(want, got v1.Hash) error {
	return invalid("the blob %s is wrong: it has the digest %s", want, got)
}
