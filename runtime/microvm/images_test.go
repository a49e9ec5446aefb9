package microvm_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestManyImages: a pod with more images than a VM has places for disks has the rest of them as
// files in the share, also when the daemon is another one.
func TestManyImages(t *testing.T) {
	w := newWorld(t)
	most := vmm.QEMU{}.Can(&vmm.Config{Machine: w.vms.Machine}).MaxDisks - 1 // one is the scratch disk's
	p := w.pod(slices.Repeat([]string{"cat /which; sleep 1000"}, most+3)...)
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Image = fmt.Sprint("image-", i)
	}
	run := func(i, attempt int) {
		t.Helper()
		layer := filepath.Join(w.image.Rootfs.Dir, fmt.Sprint("layer-", i))
		if err := os.MkdirAll(layer, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(layer+"/which", fmt.Appendf(nil, "this is image %d\n", i), 0o644); err != nil {
			t.Fatal(err)
		}
		image := w.image
		image.Reference, image.Rootfs.Layers = p.Spec.Containers[i].Image, append(slices.Clone(w.image.Rootfs.Layers), filepath.Base(layer))
		name := p.Spec.Containers[i].Name
		if err := w.manager.RunContainer(t.Context(), runtime.ContainerConfig{Pod: p, Container: &p.Spec.Containers[i], Attempt: attempt, Image: image}); err != nil {
			t.Fatalf("container %s: %v", name, err)
		}
		w.log(p, name, attempt, fmt.Sprintf("this is image %d", i))
	}
	w.create(p)
	last := len(p.Spec.Containers) - 1
	for i := range last {
		run(i, 0)
	}
	w.restart()
	run(last, 0)
	places := w.places()
	disks, files := 0, 0
	for _, place := range places {
		if place.Disk != "" {
			disks++
		} else if place.Share != "" && strings.HasSuffix(place.File, ".erofs") {
			files++
		}
	}
	if disks != most || files != 3 {
		t.Errorf("%d images are disks and %d files, want %d and 3: %v", disks, files, most, places)
	}
	// One that has come as a file is used again, and can be written above.
	for _, name := range []string{p.Spec.Containers[last].Name, p.Spec.Containers[0].Name} {
		if text, status := w.exec(p, name, "echo new > /which && cat /which"); text != "new\n" || status.Code != 0 {
			t.Errorf("%s: %q, %+v", name, text, status)
		}
		if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), name, 0); err != nil {
			t.Fatal(err)
		}
		w.await(p, name, pod.ContainerExited)
	}
	run(last, 1)
	run(0, 1)
	if again := w.places(); len(again) != len(places) {
		t.Errorf("the images have come to %d places: %v", len(again), again)
	}
}

// places are where the images of the one VM are.
func (w *world) places() (places map[string]vmm.Place) {
	w.t.Helper()
	var found []string
	err := filepath.WalkDir(w.run, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "disks.json" {
			found = append(found, path)
		}
		return nil // directories come and go
	})
	if err != nil || len(found) != 1 {
		w.t.Fatalf("the VM's files: %q, %v", found, err)
	}
	data, err := os.ReadFile(found[0])
	if err == nil {
		err = json.Unmarshal(data, &places)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return places
}
