package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
)

// A build removes what is older of its kind, and nothing else of the cache.
func TestCachedKeepsOthers(t *testing.T) {
	cache := t.TempDir()
	stay := []string{"vm-out", "vm-guest", "vmstate-0123456789ab", "vm-0123456789abc", "guests"}
	for _, name := range append([]string{"vm-0123456789ab", "vm-0123456789ac.building"}, stay...) {
		if err := os.Mkdir(filepath.Join(cache, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	builds := 0
	for range 2 {
		if err := Cached(filepath.Join(cache, "vm-ba9876543210"), func(building string) error {
			builds++
			return os.Mkdir(building, 0o755)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if builds != 1 {
		t.Errorf("%d builds, not one", builds)
	}
	files, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.Name())
	}
	want := append([]string{"vm-ba9876543210", "vm.lock"}, stay...)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the cache has %v, not %v", got, want)
	}
	if err := Cached(filepath.Join(cache, "vm"), nil); err == nil {
		t.Error("a name without a digest was taken")
	}
}

// Debian comes from where the build host's own apt has it, in whatever form that is written; other
// vendors' archives and Debian's other ones are no places for it.
func TestDebianSources(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("needs apt-get: this is not a Debian system")
	}
	const keys = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
	for _, c := range []struct {
		name, list, deb822 string
		archives           map[string]string // the beginning of a list's name: Origin and Label
		want               []string
	}{
		{
			"one line each",
			"deb http://vendor.test/apt stable main\ndeb [arch=amd64] http://mirror.test:3142/debian-security bookworm-security main\ndeb http://mirror.test:3142/debian bookworm main\n", "",
			map[string]string{"vendor.test_apt_dists_stable": "Vendor|Debian", "mirror.test:3142_debian-security_dists_bookworm-security": "Debian|Debian-Security", "mirror.test:3142_debian_dists_bookworm": "Debian|Debian"},
			[]string{keys + "http://mirror.test:3142/debian/ trixie main", keys + "http://mirror.test:3142/debian/ trixie-updates main", keys + "http://mirror.test:3142/debian-security/ trixie-security main"},
		},
		{
			"deb822, no security", "",
			"Types: deb deb-src\nURIs: https://other.test/pub/debian\nSuites: trixie\nComponents: main contrib\n",
			map[string]string{"other.test_pub_debian_dists_trixie": "Debian|Debian"},
			[]string{keys + "https://other.test/pub/debian/ trixie main", keys + "https://other.test/pub/debian/ trixie-updates main"},
		},
		{
			"none", "deb [trusted=yes] file:/nonexistent stable main\n", "",
			map[string]string{"_nonexistent_dists_stable": "Vendor|Vendor"}, nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name, text string) {
				t.Helper()
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("parts/debian.sources", c.deb822)
			write("main.list", c.list)
			write("lists/lock", "")
			for name, whose := range c.archives {
				origin, label, _ := strings.Cut(whose, "|")
				write("lists/"+name+"_Release", fmt.Sprintf("Origin: %s\nLabel: %s\nSuite: stable\nCodename: x\nComponents: main contrib\n", origin, label))
				write("lists/"+name+"_main_binary-"+goruntime.GOARCH+"_Packages", "") // apt names the lists that it has
			}
			write("apt.conf", fmt.Sprintf("Dir::Etc::sourcelist %q;\nDir::Etc::sourceparts %q;\nDir::State::lists %q;\nDir::Cache %q;\n",
				dir+"/main.list", dir+"/parts", dir+"/lists", dir+"/cache"))
			t.Setenv("APT_CONFIG", dir+"/apt.conf")
			got, err := debianSources(t.Context(), "trixie")
			if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}
