package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/magikrun/magikpod/internal/errkind"
)

const (
	sumsName     = "sums.json"
	maxSumsBytes = 1 << 20
)

// entryDir is where the machine code of a module is kept, by the digest of the module.
func (e *wazeroEngine) entryDir(sum [sha256.Size]byte, o LoadOptions) string {
	kind := "wazero-" + wazeroVersion + "-" + runtime.GOOS + "-" + runtime.GOARCH
	if o.Interruptible {
		kind += "-interruptible"
	}
	return filepath.Join(e.cache, kind, hex.EncodeToString(sum[:]))
}

// Cached says whether the cache has an entry for the module of a digest, as Compile makes it. Load
// finds out whether it can be used.
func Cached(cache string, sum [sha256.Size]byte) bool {
	_, err := os.Stat(filepath.Join((&wazeroEngine{cache: cache}).entryDir(sum, LoadOptions{}), sumsName))
	return err == nil
}

// abandoned is after how long an entry that somebody was making is nobody's.
const abandoned = time.Hour

// Prune removes the entries of modules by whose digests (hexadecimal) keep is false, all those of
// other engines and of other versions, and what compilers that were killed have left. Files and
// directories in the cache whose names begin with a dot are others'.
func Prune(cache string, keep func(digest string) bool) error {
	kinds, err := os.ReadDir(cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	own := filepath.Base(filepath.Dir((&wazeroEngine{cache: cache}).entryDir([sha256.Size]byte{}, LoadOptions{})))
	for _, kind := range kinds {
		dir := filepath.Join(cache, kind.Name())
		switch {
		case strings.HasPrefix(kind.Name(), "."):
		case kind.Name() != own:
			errs = append(errs, os.RemoveAll(dir))
		default:
			errs = append(errs, pruneEntries(dir, keep))
		}
	}
	return errors.Join(errs...)
}

// RemoveUnfinished removes what a process of this engine that was killed has not finished.
func RemoveUnfinished(cache string, pid int) error {
	parent := filepath.Dir((&wazeroEngine{cache: cache}).entryDir([sha256.Size]byte{}, LoadOptions{}))
	left, err := filepath.Glob(filepath.Join(parent, unfinished(pid)+"*"))
	errs := []error{err}
	for _, dir := range left {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// unfinished is how the names of entries begin that a process makes.
func unfinished(pid int) string { return ".new-" + strconv.Itoa(pid) + "-" }

func pruneEntries(dir string, keep func(digest string) bool) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if fi, err := e.Info(); err != nil || time.Since(fi.ModTime()) < abandoned {
				continue // gone, or being made
			}
		} else if keep(e.Name()) {
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// loadCached loads from the cache, where it puts the machine code first when it is not there, or is
// not what was put there.
func (e *wazeroEngine) loadCached(ctx context.Context, module []byte, o LoadOptions) (Program, error) {
	dir := e.entryDir(sha256.Sum256(module), o)
	if intact(dir) {
		p, err := loadFrom(ctx, module, o, dir)
		if err == nil || ctx.Err() != nil {
			return p, err
		}
	}
	// Nobody takes what is broken for an entry any more: if what follows fails in a container, for
	// want of memory, the next one finds none, and has it made outside.
	_ = os.Remove(filepath.Join(dir, sumsName))
	if err := e.fill(ctx, module, o, dir); err != nil {
		return nil, err
	}
	return loadFrom(ctx, module, o, dir)
}

func loadFrom(ctx context.Context, module []byte, o LoadOptions, dir string) (Program, error) {
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return nil, errkind.Errorf(errkind.Internal, "cannot use the compilation cache: %w", err)
	}
	p, err := load(ctx, module, o, cache)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// fill makes the entry beside its place and moves it there; an entry that another process has put
// there meanwhile is as good.
func (e *wazeroEngine) fill(ctx context.Context, module []byte, o LoadOptions, dir string) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return errkind.Errorf(errkind.Internal, "cannot make the compilation cache: %w", err)
	}
	work, err := os.MkdirTemp(parent, unfinished(os.Getpid()))
	if err != nil {
		return errkind.Errorf(errkind.Internal, "cannot make the compilation cache: %w", err)
	}
	defer os.RemoveAll(work)
	p, err := loadFrom(ctx, module, LoadOptions{Interruptible: o.Interruptible}, work)
	if err != nil {
		return err
	}
	if err := p.Close(); err != nil {
		return errkind.Errorf(errkind.Internal, "cannot write the compilation cache: %w", err)
	}
	if err := place(work, dir); err != nil {
		return errkind.Errorf(errkind.Internal, "cannot write the compilation cache: %w", err)
	}
	return nil
}

// place gives a complete entry its name.
func place(work, dir string) error {
	sums, err := sumsOf(work)
	if err != nil {
		return err
	}
	data, err := json.Marshal(sums)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, sumsName), data, 0o600); err != nil {
		return err
	}
	for range 10 {
		if err = os.Rename(work, dir); err == nil || intact(dir) {
			return nil
		}
		// What is in the way is broken.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return err
}

// intact says whether an entry is complete and unchanged.
func intact(dir string) bool {
	f, err := os.Open(filepath.Join(dir, sumsName))
	if err != nil {
		return false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSumsBytes))
	if err != nil {
		return false
	}
	var want map[string]string
	if json.Unmarshal(data, &want) != nil || len(want) == 0 {
		return false
	}
	have, err := sumsOf(dir)
	if err != nil || len(have) != len(want) {
		return false
	}
	for name, sum := range want {
		if have[name] != sum {
			return false
		}
	}
	return true
}

// sumsOf are the SHA-256 digests of the files below dir, but for the list of them.
func sumsOf(dir string) (map[string]string, error) {
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == sumsName {
			return err
		}
		if !d.Type().IsRegular() {
			return errors.New(path + " is no file")
		}
		sums[name], err = sumOf(path)
		return err
	})
	return sums, err
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
