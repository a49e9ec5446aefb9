package host

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
)

// The environment of tests that boot hosts.
const (
	// EnvRoot names the root to boot: empty for the build host's own, "trixie" for the one of `make
	// root-trixie`, or a directory.
	EnvRoot = "MAGIKHOST_ROOT"
	// EnvInstall names a directory that `make install DESTDIR=` has filled.
	EnvInstall = "MAGIKHOST_INSTALL"
)

var shared struct {
	once sync.Once
	host *Host
	err  error
}

// ForTest returns the host that all tests of the package share, booted at the first call from what
// the environment names. It skips the test, with the reason and the remedy, where hosts cannot be
// booted. A package that uses it has a TestMain that calls [Main].
func ForTest(tb testing.TB) *Host {
	tb.Helper()
	if err := Check(); err != nil {
		tb.Skip(err)
	}
	shared.once.Do(func() {
		var opts Options
		if opts, shared.err = OptionsFromEnv(); shared.err == nil {
			shared.host, shared.err = Boot(context.Background(), opts)
		}
	})
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.host
}

// OptionsFromEnv returns what EnvRoot and EnvInstall say.
func OptionsFromEnv() (Options, error) {
	root, err := FindRoot(os.Getenv(EnvRoot))
	return Options{Root: root, Install: os.Getenv(EnvInstall)}, err
}

// Main is the body of a TestMain: it runs the tests, throws the shared host away and exits.
func Main(m *testing.M) {
	code := m.Run()
	if shared.host != nil {
		if err := shared.host.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
