package client

import (
	"context"
	"os"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/podapi"
)

// PullImage pulls an image and returns the job.
func (c *Client) PullImage(ctx context.Context, ref string, o podapi.PullOptions) (job godbus.ObjectPath, err error) {
	return c.job(ctx, contract.ManagerPath, contract.ManagerInterface+".PullImage", ref, given(map[string]any{"always": o.Always, "platform": o.Platform}))
}

// LoadImage loads the images of an archive and returns their references.
func (c *Client) LoadImage(ctx context.Context, archive *os.File, o podapi.LoadOptions) (refs []string, err error) {
	err = lend(archive, os.O_RDONLY, func(f *os.File) error {
		method, args := "LoadImage", []any{godbus.UnixFD(f.Fd())}
		switch {
		case o.Platform != "":
			method, args = "LoadImageWithOptions", append(args, properties{"tag": godbus.MakeVariant(o.Tag), "platform": godbus.MakeVariant(o.Platform)})
		case o.Tag != "":
			method, args = "LoadImageAs", append(args, o.Tag)
		}
		return c.manager(ctx, method, args, &refs)
	})
	return refs, err
}

// SaveImage writes images as one archive.
func (c *Client) SaveImage(ctx context.Context, refs []string, archive *os.File) error {
	return lend(archive, os.O_WRONLY, func(f *os.File) error {
		return c.manager(ctx, "SaveImage", []any{refs, godbus.UnixFD(f.Fd())})
	})
}

// ListImages lists the images.
func (c *Client) ListImages(ctx context.Context) ([]podapi.ImageSummary, error) {
	var rows []contract.ImageRow
	if err := c.manager(ctx, "ListImages", nil, &rows); err != nil {
		return nil, err
	}
	list := make([]podapi.ImageSummary, len(rows))
	for i, r := range rows {
		list[i] = podapi.ImageSummary{ID: r.ID, References: r.References, Digest: r.Digest, Size: int64(r.Size), Created: contract.TimeOf(uint64(max(r.Created, 0))), Pods: int(r.Pods)}
	}
	return list, nil
}

// RemoveImage removes an image, or one name of it.
func (c *Client) RemoveImage(ctx context.Context, ref string, force bool) error {
	return c.manager(ctx, "RemoveImage", []any{ref, force})
}

// PruneImages removes the images that have no name and that no pod uses, and returns their IDs.
func (c *Client) PruneImages(ctx context.Context) (ids []string, err error) {
	err = c.manager(ctx, "PruneImages", nil, &ids)
	return ids, err
}

// TagImage gives an image one more name.
func (c *Client) TagImage(ctx context.Context, ref, newRef string) error {
	return c.manager(ctx, "TagImage", []any{ref, newRef})
}

// InspectImage describes an image as JSON.
func (c *Client) InspectImage(ctx context.Context, ref string) (text string, err error) {
	err = c.manager(ctx, "InspectImage", []any{ref}, &text)
	return text, err
}
