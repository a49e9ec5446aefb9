package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// library stands for libkrun, which is not installed where this test runs: it prints the calls. That shows that the library is loaded and called as its header says; not
// that a machine comes of it.
const library = `
#include <stdint.h>
#include <stdio.h>
#include <stdbool.h>
int32_t krun_create_ctx(void) { return 5; }
int32_t krun_set_vm_config(uint32_t c, uint8_t n, uint32_t m) { printf("config %u %u %u\n", c, n, m); return 0; }
int32_t krun_set_kernel(uint32_t c, const char *k, uint32_t f, const char *i, const char *l) { printf("kernel %u %s %u %s %s\n", c, k, f, i, l); return 0; }
int32_t krun_add_disk2(uint32_t c, const char *id, const char *p, uint32_t f, bool ro) { printf("disk %u %s %s %u %d\n", c, id, p, f, ro); return 0; }
int32_t krun_add_net_tap(uint32_t c, char *t, uint8_t *m, uint32_t f, uint32_t g) { printf("net %u %s %02x:%02x %u %u\n", c, t, m[0], m[5], f, g); return 0; }
int32_t krun_disable_implicit_vsock(uint32_t c) { printf("no vsock %u\n", c); return 0; }
int32_t krun_add_vsock(uint32_t c, uint32_t f) { printf("vsock %u %u\n", c, f); return 0; }
int32_t krun_add_vsock_port2(uint32_t c, uint32_t p, const char *s, bool l) { printf("port %u %u %s %d\n", c, p, s, l); return 0; }
int32_t krun_add_virtiofs3(uint32_t c, const char *t, const char *p, uint64_t w, bool ro) { printf("share %u %s %s %llu %d\n", c, t, p, (unsigned long long)w, ro); return 0; }
int32_t krun_start_enter(uint32_t c) { printf("start %u\n", c); fflush(stdout); return -22; }
`

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "--config" {
		main()
	}
	os.Exit(m.Run())
}

func TestCalls(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Fatalf("%v (try: scripts/deps)", err)
	}
	dir := t.TempDir()
	source, object, config := filepath.Join(dir, "krun.c"), filepath.Join(dir, "libkrun.so"), filepath.Join(dir, "krun.json")
	if err := os.WriteFile(source, []byte(library), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", object, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := json.Marshal(vmm.KrunConfig{
		Library: object, Kernel: "/vm/kernel", Initrd: "/vm/initrd", Cmdline: "quiet", CPUs: 2, MemoryMiB: 512, Disks: []vmm.Disk{{Path: "/vm/disks/img-1", Serial: "img-1", ReadOnly: true}},
		NIC: &vmm.NIC{Tap: "mvm0", MAC: "02:00:00:00:00:09"}, ShareTag: "images", ShareDir: "/vm/images", VsockPath: "/run/vsock",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	run := exec.Command("/proc/self/exe", "--config", config)
	var stderr strings.Builder
	run.Stderr = &stderr
	out, err := run.Output()
	if err == nil || !strings.Contains(stderr.String(), "krun_start_enter: invalid argument") {
		t.Errorf("%v: %s", err, stderr.String())
	}
	want := "config 5 2 512\nkernel 5 /vm/kernel 1 /vm/initrd quiet\nno vsock 5\nvsock 5 0\nport 5 1024 /run/vsock 1\nshare 5 images /vm/images 0 1\ndisk 5 img_1 /vm/disks/img-1 0 1\nnet 5 mvm0 02:09 0 0\nstart 5\n"
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(config, []byte(strings.Replace(string(text), object, dir+"/none.so", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/proc/self/exe", "--config", config).CombinedOutput(); err == nil || !strings.Contains(string(out), "cannot load libkrun") {
		t.Errorf("without the library: %v: %s", err, out)
	}
}
