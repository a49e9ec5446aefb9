package host

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
)

// inside is the value that the variable of [Inside] has in the host.
const inside = "inside"

// Inside is the body of a TestMain for tests that run inside a host, where everything is at hand without going through this package: with the
// variable env set, the test binary boots one host from what the environment names, runs itself again in it, with the same arguments, and throws
// the host away. In the host prepare is called before the tests. Without the variable the tests run here, and skip themselves: see [IsInside].
//
// The source tree is mounted in the host at its place, writable.
func Inside(m *testing.M, env string, prepare func(context.Context) error) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := 0, error(nil)
	switch os.Getenv(env) {
	case "":
		code = m.Run()
	case inside:
		if err = prepare(ctx); err == nil {
			code = m.Run()
		}
	default:
		code, err = runInside(ctx, env)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// IsInside skips a test that does not run inside a host; hint says how to get there.
func IsInside(tb testing.TB, env, hint string) {
	tb.Helper()
	if os.Getenv(env) != inside {
		tb.Skipf("this runs on a disposable host, which needs root and an installed tree (try: %s)", hint)
	}
}

func runInside(ctx context.Context, env string) (int, error) {
	opts, err := OptionsFromEnv()
	if err != nil {
		return 1, err
	}
	if opts.Install == "" {
		return 1, fmt.Errorf("%s names no directory with an installed magikpod (try: make staged)", EnvInstall)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	tree, err := SourceTree()
	if err != nil {
		return 1, err
	}
	opts.Binds = []string{tree}
	if !strings.HasPrefix(self, tree+"/") {
		opts.Binds = append(opts.Binds, filepath.Dir(self))
	}
	h, err := Boot(ctx, opts)
	if err != nil {
		return 1, err
	}
	code := 1
	p, err := h.Start(ctx, Command{
		Argv: append([]string{self}, os.Args[1:]...), Dir: dir, Env: []string{env + "=" + inside, "HOME=/root", "LANG=C.UTF-8"}, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err == nil {
		code, err = p.Wait()
	}
	if code != 0 {
		journal, jerr := h.Journal(context.WithoutCancel(ctx), "--unit=magikpodd.service", "--lines=300")
		fmt.Fprintf(os.Stderr, "the last lines of the daemon's journal:\n%s\n", journal)
		err = errors.Join(err, jerr)
	}
	return code, errors.Join(err, h.Close())
}
