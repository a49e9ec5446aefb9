package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/dbus/client"
	magikpod "github.com/magikrun/magikpod/pod"
)

// bundle makes the configuration that `crun spec` has written run what the pod runs.
func bundle(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	spec.Process.Terminal = false
	spec.Process.Args = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// floor is what no design on systemd and crun can be quicker than: one transient service that runs crun.
type floor struct {
	conn *systemd.Conn
	runs int
	id   string
}

func newFloor(ctx context.Context) (*floor, error) {
	conn, err := systemd.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, err
	}
	return &floor{conn: conn}, conn.Subscribe()
}

func (f *floor) close() { f.conn.Close() }

func (f *floor) contender() contender {
	return contender{
		name: "floor", start: f.start, down: f.down,
		exec: func(ctx context.Context) error { return command(ctx, "crun", "exec", f.id, "true") },
	}
}

func (f *floor) start(ctx context.Context) error {
	f.runs++
	f.id = fmt.Sprintf("floor-%d", f.runs)
	pidFile := filepath.Join("/run", f.id+".pid")
	type execStart struct {
		Path string
		Args []string
		Fail bool
	}
	argv := []string{"/usr/bin/crun", "--cgroup-manager=disabled", "run", "--detach", "--pid-file", pidFile, "--bundle", filepath.Join(work, "bundle"), f.id}
	return f.job(ctx, func(done chan<- string) (int, error) {
		return f.conn.StartTransientUnitContext(ctx, f.id+".service", "fail", []systemd.Property{
			systemd.PropType("forking"),
			{Name: "PIDFile", Value: godbus.MakeVariant(pidFile)},
			{Name: "ExecStart", Value: godbus.MakeVariant([]execStart{{argv[0], argv, false}})},
			{Name: "KillMode", Value: godbus.MakeVariant("mixed")},
			{Name: "TimeoutStopUSec", Value: godbus.MakeVariant(uint64(10_000_000))}, // as the pod's
			{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
		}, done)
	})
}

func (f *floor) down(ctx context.Context) error {
	err := f.job(ctx, func(done chan<- string) (int, error) {
		return f.conn.StopUnitContext(ctx, f.id+".service", "fail", done)
	})
	if err != nil {
		return err
	}
	return command(ctx, "crun", "delete", "--force", f.id)
}

// job waits for the end of the job that begin begins.
func (f *floor) job(ctx context.Context, begin func(chan<- string) (int, error)) error {
	done := make(chan string, 1)
	if _, err := begin(done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("the job ended: %s", result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// program uses magikpod over D-Bus, on one connection.
type program struct {
	client   *client.Client
	manifest []byte
}

func newProgram(file string) (*program, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	client, err := client.Dial("")
	return &program{client: client, manifest: text}, err
}

func (p *program) close() { p.client.Close() }

func (p *program) contender() contender {
	return contender{name: "magikpod over D-Bus", start: p.start, down: p.down, list: func(ctx context.Context) error {
		_, err := p.client.List(ctx, "default")
		return err
	}}
}

func (p *program) start(ctx context.Context) error {
	job, err := p.client.Run(ctx, p.manifest, magikpod.RunOptions{})
	if err == nil {
		_, err = p.client.Wait(ctx, job, nil)
	}
	return err
}

func (p *program) down(ctx context.Context) error {
	path, err := p.client.Pod(ctx, "default", "bench")
	if err != nil {
		return err
	}
	job, err := p.client.Delete(ctx, path, magikpod.StopOptions{})
	if err == nil {
		_, err = p.client.Wait(ctx, job, nil)
	}
	return err
}
