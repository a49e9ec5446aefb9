package dbus

import (
	"context"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// checkReference refuses what no image can be called; the image package has the last word.
func checkReference(ref string) error {
	switch {
	case ref == "":
		return pod.Errorf(pod.Invalid, "cannot use the image reference: it is empty")
	case len(ref) > maxReference:
		return pod.Errorf(pod.Invalid, "cannot use the image reference: it has %d bytes, and %d are allowed", len(ref), maxReference)
	case strings.ContainsAny(ref, " \t\r\n"):
		return pod.Errorf(pod.Invalid, "cannot use the image reference %q: it has white space in it", ref)
	}
	return nil
}

func (c *call) pullImage() ([]any, error) {
	var ref string
	var opts map[string]godbus.Variant
	if err := c.store(&ref, &opts); err != nil {
		return nil, err
	}
	var o pod.PullOptions
	if err := newOptions(opts).take("always", &o.Always).take("platform", &o.Platform).end(); err != nil {
		return nil, err
	}
	if err := checkReference(ref); err != nil {
		return nil, err
	}
	job, err := c.server.backend.PullImage(c.ctx, ref, o)
	return c.job(job, err)
}

// loadImage serves LoadImage(h), LoadImageAs(hs) and LoadImageWithOptions(ha{sv}).
func (c *call) loadImage() ([]any, error) {
	var o pod.LoadOptions
	if len(c.body) > 1 {
		var err error
		switch more := c.body[1].(type) {
		case string:
			o.Tag, err = more, checkReference(more)
		case map[string]godbus.Variant:
			if err = newOptions(more).take("tag", &o.Tag).take("platform", &o.Platform).end(); err == nil && o.Tag != "" {
				err = checkReference(o.Tag)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	archive, err := c.archive(os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	refs, err := c.server.backend.LoadImage(c.ctx, archive, o)
	if err != nil {
		return nil, err
	}
	return []any{notNil(refs)}, nil
}

func (c *call) saveImage() ([]any, error) {
	refs := c.body[0].([]string)
	if len(refs) == 0 {
		return nil, pod.Errorf(pod.Invalid, "cannot save images: none is named")
	}
	for _, ref := range refs {
		if err := checkReference(ref); err != nil {
			return nil, err
		}
	}
	archive, err := c.archive(os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	return nil, c.server.backend.SaveImage(c.ctx, refs, archive)
}

// archive is the file of the call: a regular one, or a pipe, which ends with the call's context
// whoever has its other end. The caller closes it.
func (c *call) archive(mode int) (*os.File, error) {
	f := c.take()[0]
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		return f, nil
	}
	defer f.Close()
	end, err := ownEnd(f, mode, "the archive")
	if err != nil {
		return nil, pod.Errorf(pod.KindOf(err), "cannot use the archive: %w", err)
	}
	context.AfterFunc(c.ctx, func() { _ = end.SetDeadline(time.Unix(1, 0)) })
	return end, nil
}

func (c *call) listImages() ([]any, error) {
	images, err := c.server.backend.ListImages(c.ctx)
	if err != nil {
		return nil, err
	}
	rows := []contract.ImageRow{}
	for _, i := range images {
		rows = append(rows, contract.ImageRow{
			ID: i.ID, References: notNil(i.References), Digest: i.Digest, Size: uint64(max(i.Size, 0)), Created: int64(contract.USec(i.Created)), Pods: uint32(max(i.Pods, 0)),
		})
	}
	return []any{rows}, nil
}

func (c *call) removeImage() ([]any, error) {
	ref, force := c.body[0].(string), c.body[1].(bool)
	if err := checkReference(ref); err != nil {
		return nil, err
	}
	return nil, c.server.backend.RemoveImage(c.ctx, ref, force)
}

func (c *call) pruneImages() ([]any, error) {
	ids, err := c.server.backend.PruneImages(c.ctx)
	if err != nil {
		return nil, err
	}
	return []any{notNil(ids)}, nil
}

func (c *call) tagImage() ([]any, error) {
	ref, to := c.body[0].(string), c.body[1].(string)
	if err := checkReference(ref); err != nil {
		return nil, err
	}
	if err := checkReference(to); err != nil {
		return nil, err
	}
	return nil, c.server.backend.TagImage(c.ctx, ref, to)
}

func (c *call) inspectImage() ([]any, error) {
	ref := c.body[0].(string)
	if err := checkReference(ref); err != nil {
		return nil, err
	}
	text, err := c.server.backend.InspectImage(c.ctx, ref)
	if err != nil {
		return nil, err
	}
	return []any{string(text)}, nil
}
