package bench

import (
	"context"
	"fmt"
	"os"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/pod"
)

// program uses magikpod over D-Bus, on one connection.
type program struct {
	name     string
	client   *client.Client
	manifest []byte
}

func newProgram(name, file string) (*program, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	client, err := client.Dial("")
	return &program{name, client, text}, err
}

func (p *program) close() { p.client.Close() }

func (p *program) contender() contender {
	return contender{p.name, []step{{"start", p.start, 1}, {"exec", p.exec, 1}, {"list", repeated(p.list), repetitions}, {"down", p.down, 1}}}
}

func (p *program) start(ctx context.Context) error {
	job, err := p.client.Run(ctx, p.manifest, pod.RunOptions{})
	if err == nil {
		_, err = p.client.Wait(ctx, job, nil)
	}
	return err
}

func (p *program) exec(ctx context.Context) error {
	path, err := p.client.Pod(ctx, "default", "bench")
	if err != nil {
		return err
	}
	code, err := p.client.Exec(ctx, path, "", client.Process{Args: []string{"true"}}, podapi.WinSize{})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d", code)
	}
	return err
}

func (p *program) list(ctx context.Context) error {
	_, err := p.client.List(ctx, "default")
	return err
}

func (p *program) down(ctx context.Context) error {
	path, err := p.client.Pod(ctx, "default", "bench")
	if err != nil {
		return err
	}
	job, err := p.client.Delete(ctx, path, pod.StopOptions{})
	if err == nil {
		_, err = p.client.Wait(ctx, job, nil)
	}
	return err
}
