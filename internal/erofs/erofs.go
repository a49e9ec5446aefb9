package erofs

import (
	"encoding/binary"
	"errors"
	"io"
)

// The super block (fs/erofs/erofs_fs.h).
const (
	superOffset = 1024
	superMagic  = 0xE0F5E1E2
	blockBits   = 12 // here and below: where in it
	blocks      = 36
	superBytes  = blocks + 4
)

// ErrNone means that there is no erofs.
var ErrNone = errors.New("it has no erofs on it")

// Size is how many bytes the erofs in r has by its super block; r may have fewer. The error is
// [io.ErrUnexpectedEOF] when r ends before that.
func Size(r io.ReaderAt) (int64, error) {
	super := make([]byte, superBytes)
	if n, err := r.ReadAt(super, superOffset); n < len(super) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	if binary.LittleEndian.Uint32(super) != superMagic {
		return 0, ErrNone
	}
	return int64(binary.LittleEndian.Uint32(super[blocks:])) << (super[blockBits] & 31), nil
}
