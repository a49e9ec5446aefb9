package native

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/pod"
)

func TestHostFacts(t *testing.T) {
	facts := hostFacts()
	if facts.MemoryBytes < 1<<20 {
		t.Errorf("%d bytes of memory", facts.MemoryBytes)
	}
	if os.Getuid() == 0 && !slices.Contains(facts.Capabilities, "CAP_CHOWN") {
		t.Errorf("%v", facts.Capabilities)
	}
	if facts.LowerOOMScore != slices.Contains(facts.Capabilities, "CAP_SYS_RESOURCE") {
		t.Errorf("%+v", facts)
	}
	found := false
	for _, device := range hostDevices("/dev") {
		found = found || device.Path == "/dev/null" && device.Type == "c" && device.Major == 1 && device.Minor == 3
		if strings.HasPrefix(device.Path, "/dev/pts/") || device.Path == "/dev/console" {
			t.Errorf("%+v", device)
		}
	}
	if !found {
		t.Error("no /dev/null")
	}
}

func TestFindRuntime(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "runc-9")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho runc version 9.1+x\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := findRuntime(t.Context(), path, "/run/x")
	if err != nil || r.name != "runc" || r.version != "9.1+x" || r.root != "/run/x/runtime/runc" || r.cgroupsPath("a/b.service") != "/a/b.service/container" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, wanted := range []string{"kata", "/usr/bin/kata", filepath.Join(dir, "crun-missing")} {
		if _, err := findRuntime(t.Context(), wanted, "/run/x"); pod.KindOf(err) != pod.Unsupported {
			t.Errorf("%s: %v", wanted, err)
		}
	}
}
