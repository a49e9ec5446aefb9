package runtime

import (
	"os"
	"testing"
)

func TestTmpfsOptions(t *testing.T) {
	for _, tc := range []struct {
		name  string
		tmpfs Tmpfs
		want  string
	}{
		{"sticky", Tmpfs{Mode: os.ModeSticky | 0o777}, "mode=1777"},
		{"size and group", Tmpfs{Mode: os.ModeSticky | os.ModeSetgid | 0o777, SizeBytes: 4096, GID: 2000}, "mode=3777,size=4096,gid=2000"},
		{"plain", Tmpfs{Mode: 0o700}, "mode=0700"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.tmpfs.Options(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
