package image

import (
	"bytes"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/layertree"
)

const maxUserFile = 1 << 20 // bytes of /etc/passwd or /etc/group

// readFile returns the regular file at the path in the image, cut at the last line end before
// limit; nil when there is none.
func readFile(t layertree.Tree, path string, limit int) ([]byte, error) {
	real, err := t.Resolve(path)
	if err != nil || real == "" {
		return nil, err
	}
	// The layers are complete and nobody changes them, so what Resolve saw is what is opened.
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		data = data[:bytes.LastIndexByte(data[:limit], '\n')+1]
	}
	return data, nil
}
