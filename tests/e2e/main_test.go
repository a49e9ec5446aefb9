package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

// envE2E switches the tests on. The part of the test binary that runs in the host finds "inside" there.
const envE2E = "MAGIKPOD_E2E"

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch os.Getenv(envE2E) {
	case "":
		os.Exit(m.Run()) // the tests skip themselves
	case "inside":
		// Most of a script's time is waiting, and there are two cores.
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err)
		}
		if err := prepare(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "cannot prepare the host:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	code, err := inHost(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// inHost runs this test binary, with its arguments, on a disposable host, and returns its exit status.
func inHost(ctx context.Context) (int, error) {
	opts, err := host.OptionsFromEnv()
	if err != nil {
		return 1, err
	}
	if opts.Install == "" {
		return 1, fmt.Errorf("%s names no directory with an installed magikpod (try: make e2e)", host.EnvInstall)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	opts.Binds = []string{dir}
	if !strings.HasPrefix(self, dir+"/") {
		opts.Binds = append(opts.Binds, filepath.Dir(self))
	}
	h, err := host.Boot(ctx, opts)
	if err != nil {
		return 1, err
	}
	p, err := h.Start(ctx, host.Command{
		Argv: append([]string{self}, os.Args[1:]...), Dir: dir, Env: []string{envE2E + "=inside", "HOME=/root", "LANG=C.UTF-8"}, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	code := 1
	if err == nil {
		code, err = p.Wait()
	}
	if code != 0 {
		journal, jerr := h.Journal(context.WithoutCancel(ctx), "--unit=magikpodd.service", "--unit=init.scope", "--lines=300")
		fmt.Fprintf(os.Stderr, "the last lines of the daemon's journal:\n%s\n", journal)
		err = errors.Join(err, jerr)
	}
	return code, errors.Join(err, h.Close())
}

// inside skips a test that does not run in the host.
func inside(t *testing.T) {
	t.Helper()
	if os.Getenv(envE2E) != "inside" {
		t.Skipf("end-to-end tests boot a host, which needs root and an installed tree (try: make e2e)")
	}
}
