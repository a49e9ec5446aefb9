package host

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inside is the value that the variable of [Inside] has in the host.
const inside = "inside"

// Inside is the body of a TestMain for tests that run inside a host, where everything is at hand
// without going through this package: with the variable env set, the test binary boots one host
// from what the environment names, runs itself again in it, with the same arguments, and throws the
// host away. In the host prepare is called before the tests. Without the variable the tests run
// here, and skip themselves: see [IsInside].
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
		Argv: append([]string{"/bin/sh", "-c", `"$@"; echo $? >` + codeFile, "sh", self}, os.Args[1:]...), Dir: dir, Env: []string{env + "=" + inside, "HOME=/root", "LANG=C.UTF-8"}, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err == nil {
		_, err = p.Wait()
	}
	if err == nil {
		code, err = h.awaitCode(ctx, p.unit)
	}
	if code != 0 {
		journal, jerr := h.Journal(context.WithoutCancel(ctx), "--unit=magikpodd.service", "--lines=300")
		fmt.Fprintf(os.Stderr, "the last lines of the daemon's journal:\n%s\n", journal)
		err = errors.Join(err, jerr)
	}
	return code, errors.Join(err, h.Close())
}

// codeFile is where the exit status of the tests is in the host.
const codeFile = "/run/magikhost-code"

// awaitCode returns the exit status of the tests. They are waited for over the host's bus, which a
// test may kill: then systemd-run is gone, and they still run.
func (h *Host) awaitCode(ctx context.Context, unit string) (int, error) {
	for {
		state, err := h.enter(ctx, "systemctl", "show", "--property=ActiveState", "--value", unit).CombinedOutput()
		over := strings.TrimSpace(string(state)) != "active" && err == nil
		if text, err := h.enter(ctx, "cat", codeFile).Output(); err == nil && len(text) > 0 {
			return strconv.Atoi(strings.TrimSpace(string(text)))
		}
		if over || ctx.Err() != nil {
			return 1, fmt.Errorf("the tests in host %s have ended without an exit status (%s)", h.name, bytes.TrimSpace(state))
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
