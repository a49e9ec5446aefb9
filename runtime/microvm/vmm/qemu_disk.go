package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// attach does what is not done yet: an earlier call may have been cut short anywhere.
func (c *qemuControl) attach(ctx context.Context, d Disk, file *os.File) error {
	there, err := c.attached(ctx, d.Serial)
	if err != nil || there {
		return err
	}
	// A node without its device is of an earlier call.
	if err := c.removeNode(ctx, d.Serial); err != nil {
		return err
	}
	var set struct {
		ID int `json:"fdset-id"`
	}
	answer, err := c.monitor.execute(ctx, "add-fd", map[string]any{"opaque": d.Serial}, file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, &set); err != nil {
		return fmt.Errorf("QEMU's answer to add-fd: %w", err)
	}
	_, err = c.monitor.execute(ctx, "blockdev-add", map[string]any{
		"driver": "raw", "node-name": nodeName(d.Serial), "read-only": d.ReadOnly,
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "locking": "off"},
	}, nil)
	if err == nil {
		device := map[string]any{"driver": "virtio-blk-pci", "id": deviceID(d.Serial), "drive": nodeName(d.Serial), "serial": d.Serial}
		err = c.addDevice(ctx, device)
	}
	if err != nil {
		return errors.Join(err, c.removeNode(ctx, d.Serial))
	}
	return nil
}

// addDevice adds a device; with PCI Express into the first root port that is free.
func (c *qemuControl) addDevice(ctx context.Context, device map[string]any) error {
	if !express(c.machine) {
		_, err := c.monitor.execute(ctx, "device_add", device, nil)
		return err
	}
	for i := range attachSlots {
		device["bus"] = fmt.Sprintf("slot%d", i)
		_, err := c.monitor.execute(ctx, "device_add", device, nil)
		var refused *qmpError
		if err == nil || !errors.As(err, &refused) || ctx.Err() != nil {
			return err
		}
		if i == attachSlots-1 {
			return err
		}
	}
	return nil
}

// attached says whether the disk is there.
func (c *qemuControl) attached(ctx context.Context, serial string) (bool, error) {
	answer, err := c.monitor.execute(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, nil)
	if err != nil {
		return false, err
	}
	var devices []struct{ Name string }
	if err := json.Unmarshal(answer, &devices); err != nil {
		return false, fmt.Errorf("QEMU's list of devices: %w", err)
	}
	for _, device := range devices {
		if device.Name == deviceID(serial) {
			return true, nil
		}
	}
	return false, nil
}

// removeNode removes the block node of a disk and its descriptor, if there are any.
func (c *qemuControl) removeNode(ctx context.Context, serial string) error {
	var refused *qmpError
	if _, err := c.monitor.execute(ctx, "blockdev-del", map[string]any{"node-name": nodeName(serial)}, nil); err != nil && !errors.As(err, &refused) {
		return err
	}
	answer, err := c.monitor.execute(ctx, "query-fdsets", nil, nil)
	if err != nil {
		return err
	}
	var sets []struct {
		ID  int `json:"fdset-id"`
		FDs []struct{ Opaque string }
	}
	if err := json.Unmarshal(answer, &sets); err != nil {
		return fmt.Errorf("QEMU's list of descriptors: %w", err)
	}
	for _, set := range sets {
		if len(set.FDs) > 0 && set.FDs[0].Opaque == serial {
			if _, err := c.monitor.execute(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil); err != nil && !errors.As(err, &refused) {
				return err
			}
		}
	}
	return nil
}
