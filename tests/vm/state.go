package vm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/vm/wire"
)

// Booting takes 10 to 16 s in emulation, restoring a booted VM 3 s. A state is QEMU's migration
// stream of a VM without any payload. It fits the same image, initrd and arguments only, so these
// are its name. What is laid over the root comes afterwards, from the disk that carries the
// payload.

// restorable says whether a VM may come from a saved state: it must not have to boot, and its disks
// must be those that the state has.
func (o Options) restorable() bool { return o.Disk == "" && !o.Enable && os.Getenv(EnvPlain) == "" }

// stateFile is the file in the directory of a saved state.
const stateFile = "state"

// restoreTime is how long a restored VM may take to answer, times [Slowness].
const restoreTime = 12 * time.Second

// restore starts a VM from the saved state, which is made when there is none. A state that does not
// work is removed.
func restore(ctx context.Context, image Image, opts Options, initrd *os.File) (*VM, error) {
	state, err := image.savedState(ctx, initrd)
	if err != nil {
		return nil, fmt.Errorf("cannot save the state of a booted VM: %w", err)
	}
	payload, err := writePayload(opts)
	if err != nil {
		return nil, err
	}
	defer payload.Close()
	args := append(arguments(image, Options{}), "-incoming", "file:"+filepath.Join(state, stateFile))
	m, err := start(args, image, opts, initrd, payload)
	if err != nil {
		return nil, fmt.Errorf("cannot start QEMU: %w", err)
	}
	if err := m.restored(ctx); err != nil {
		m.Close()
		return nil, errors.Join(fmt.Errorf("cannot restore a VM: %w; its console:\n%s", err, m.Console()), os.RemoveAll(state))
	}
	return m, nil
}

// restored waits until the VM runs, gives it the time, and lays the payload over its root.
func (m *VM) restored(ctx context.Context) error {
	if err := m.resume(ctx); err != nil {
		return err
	}
	if err := m.conn.Send(wire.Frame{Kind: wire.Hello, Data: []byte(time.Now().UTC().Format(time.RFC3339Nano))}); err != nil {
		return err
	}
	select {
	case <-m.hello:
	case <-m.exited:
		return errors.New("QEMU has ended")
	case <-time.After(restoreTime * time.Duration(Slowness())):
		return errors.New("it does not answer")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	const lay = `blockdev --flushbufs /dev/vdb && tar --no-overwrite-dir --keep-directory-symlink -C / -xf /dev/vdb && systemctl daemon-reload && systemctl reload dbus.service`
	_, err := m.Output(ctx, "sh", "-c", lay)
	return err
}

// resume waits until QEMU has read the state, and lets the VM run.
func (m *VM) resume(ctx context.Context) error {
	q, stop := m.talk(ctx)
	defer stop()
	if _, err := q.execute(`{"execute":"qmp_capabilities"}`); err != nil {
		return err
	}
	for {
		answer, err := q.execute(`{"execute":"query-status"}`)
		if err != nil {
			return err
		}
		var now struct {
			Status string `json:"status"`
		}
		if err := json.Unmarshal(answer, &now); err != nil {
			return err
		}
		if now.Status != "inmigrate" {
			_, err := q.execute(`{"execute":"cont"}`)
			return err
		}
		time.Sleep(20 * time.Millisecond) // QEMU has no event for it without asking for one
	}
}

// savedState returns the directory of the saved state; it boots a VM to make it when it is missing.
func (i Image) savedState(ctx context.Context, initrd *os.File) (string, error) {
	digest := sha256.New()
	fmt.Fprintf(digest, "%q\x00", arguments(i, Options{}))
	if _, err := io.Copy(digest, io.NewSectionReader(initrd, 0, 1<<30)); err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(i.dir), "vmstate-"+hex.EncodeToString(digest.Sum(nil)[:6]))
	return dir, host.Cached(dir, func(building string) error {
		if err := os.Mkdir(building, 0o755); err != nil {
			return err
		}
		m, err := coldBoot(ctx, i, Options{}, initrd)
		if err != nil {
			return err
		}
		defer m.Close()
		return m.save(ctx, filepath.Join(building, stateFile))
	})
}

// save stops a VM and writes its state to a file.
func (m *VM) save(ctx context.Context, path string) error {
	if _, err := m.Output(ctx, "sync"); err != nil {
		return err
	}
	q, stop := m.talk(ctx)
	defer stop()
	steps := []string{
		`{"execute":"qmp_capabilities"}`, `{"execute":"stop"}`,
		`{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":10000000000}}`, // what is not sent needs no network
		fmt.Sprintf(`{"execute":"migrate","arguments":{"uri":"file:%s"}}`, path),
	}
	for _, step := range steps {
		if _, err := q.execute(step); err != nil {
			return err
		}
	}
	for {
		answer, err := q.execute(`{"execute":"query-migrate"}`)
		if err != nil {
			return err
		}
		var progress struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := json.Unmarshal(answer, &progress); err != nil {
			return err
		}
		switch progress.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("QEMU says %s: %s", progress.Status, progress.Error)
		}
		time.Sleep(50 * time.Millisecond) // QEMU has no event for it without asking for one
	}
}

// talk opens the conversation with the monitor, once in a VM's life; it ends with ctx.
func (m *VM) talk(ctx context.Context) (q qmp, stop func() bool) {
	stop = context.AfterFunc(ctx, func() { _ = m.monitor.SetReadDeadline(time.Now()) })
	return qmp{m.monitor, bufio.NewReader(m.monitor)}, stop
}

// qmp is the monitor of a VM: https://www.qemu.org/docs/master/interop/qmp-spec.html.
type qmp struct {
	w io.Writer
	r *bufio.Reader
}

// execute runs a command and returns what it returns.
func (q qmp) execute(command string) (json.RawMessage, error) {
	if _, err := io.WriteString(q.w, command+"\n"); err != nil {
		return nil, err
	}
	for {
		line, err := q.r.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("QEMU does not answer to %s: %w", strings.TrimSpace(command), err)
		}
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			return nil, err
		}
		switch {
		case answer.Error != nil:
			return nil, fmt.Errorf("%s: %s", command, answer.Error.Desc)
		case answer.Return != nil:
			return answer.Return, nil
		} // the greeting and events are neither
	}
}
