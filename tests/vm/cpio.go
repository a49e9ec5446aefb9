package vm

import (
	"io"

	"github.com/magikrun/magikpod/internal/newc"
)

// cpio is the initrd's archive.
type cpio struct{ *newc.Writer }

func newCpio(w io.Writer) cpio { return cpio{newc.New(w)} }

func (c cpio) mkdir(name string, perm uint32)                { c.Mkdir(name, perm) }
func (c cpio) device(name string, major, minor int)          { c.Device(name, major, minor) }
func (c cpio) text(name string, perm uint32, content string) { c.Text(name, perm, content) }
func (c cpio) link(name, target string)                      { c.Link(name, target) }
func (c cpio) add(name, from string)                         { c.Add(name, from) }
func (c cpio) close() error                                  { return c.Close() }
