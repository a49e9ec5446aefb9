package vmm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CloudHypervisor is the driver of cloud-hypervisor. The conformance tests run it where it is
// installed; elsewhere only its arguments and requests are tested.
type CloudHypervisor struct{}

// Name is cloud-hypervisor.
func (CloudHypervisor) Name() string { return "cloud-hypervisor" }

// Can says what cloud-hypervisor can do: its only bus has 32 slots.
func (CloudHypervisor) Can(*Config) Abilities {
	return Abilities{MaxDisks: 24, AttachDir: disksDir, Vsock: []VsockKind{VsockHybrid}}
}

func (CloudHypervisor) program(c *Config) string {
	return cmp.Or(c.Program, "/usr/bin/cloud-hypervisor")
}

// Check looks for the program and KVM.
func (v CloudHypervisor) Check(c *Config) error {
	if err := checkProgram(v.program(c), "cloud-hypervisor"); err != nil {
		return err
	}
	if c.Accel != AccelKVM {
		return fmt.Errorf("%s emulates no CPU: it needs KVM, and the configuration says %q", v.Name(), c.Accel)
	}
	return checkKVM()
}

// Command builds the arguments. Its vsock socket is made by itself, in a directory that it may write to.
func (v CloudHypervisor) Command(c *Config) (*Command, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	cmd := &Command{
		Env: []string{"PATH=/usr/bin"},
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: v.program(c)}, Mount{Source: c.Kernel, Target: jailKernel}, Mount{Source: c.Initrd, Target: jailInitrd},
			Mount{Source: "/dev/kvm", Writable: true}, Mount{Source: filepath.Dir(c.Vsock.Path), Writable: true}),
		Helpers: map[string]*Command{},
	}
	console := "off"
	line := Cmdline
	if c.Console {
		console, line = "tty", "console=ttyS0 "+line
	}
	memory := fmt.Sprintf("size=%dM", c.MemoryMiB)
	if c.Share != nil {
		memory += ",shared=on"
	}
	cmd.Argv = []string{v.program(c), "--api-socket", fmt.Sprintf("fd=%d", cmd.fd(FDListen, c.Control, false)), "--kernel", jailKernel, "--initramfs", jailInitrd,
		"--cmdline", strings.TrimSpace(line + " " + c.Cmdline), "--cpus", fmt.Sprintf("boot=%d", c.CPUs), "--memory", memory, "--serial", console, "--console", "off",
		"--vsock", fmt.Sprintf("cid=%d,socket=%s", c.Vsock.CID, c.Vsock.Path)}
	if len(c.Disks) > 0 {
		cmd.Argv = append(cmd.Argv, "--disk")
	}
	for _, d := range c.Disks {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: d.Path, Target: diskPath(d.Serial), Writable: !d.ReadOnly, Owned: !d.ReadOnly})
		cmd.Argv = append(cmd.Argv, fmt.Sprintf("path=%s,readonly=%s,id=%s,serial=%s", diskPath(d.Serial), onOff(d.ReadOnly), deviceID(d.Serial), d.Serial))
	}
	if n := c.NIC; n != nil {
		cmd.Argv = append(cmd.Argv, "--net", fmt.Sprintf("fd=%d,mac=%s", cmd.fd(FDTap, n.Tap, false), n.MAC))
	}
	if s := c.Share; s != nil {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: filepath.Dir(s.Socket), Writable: true})
		cmd.Argv = append(cmd.Argv, "--fs", fmt.Sprintf("tag=%s,socket=%s", s.Tag, s.Socket))
		cmd.Helpers["share"] = virtiofsd(s)
	}
	return cmd, nil
}

// disksDir is where the monitor, which takes no descriptors of disks, finds them in its jail.
const disksDir = "/vm/disks"

func diskPath(serial string) string { return disksDir + "/" + serial }

// Control returns a client of the REST interface once that answers.
func (CloudHypervisor) Control(ctx context.Context, c *Config) (Control, error) {
	r := rest{c.Control}
	if _, err := r.do(ctx, "GET", "/api/v1/vmm.ping", nil); err != nil {
		return nil, fmt.Errorf("cannot speak to cloud-hypervisor: %w", err)
	}
	return cloudHypervisorControl{r}, nil
}

type cloudHypervisorControl struct{ rest }

// AttachDisk adds a disk.
func (c cloudHypervisorControl) AttachDisk(ctx context.Context, d Disk, _ *os.File) (Place, error) {
	if !serialForm.MatchString(d.Serial) {
		return Place{}, fmt.Errorf("cannot attach a disk: its serial number is %q", d.Serial)
	}
	there, err := c.attached(ctx, d.Serial)
	if err == nil && !there {
		_, err = c.do(ctx, "PUT", "/api/v1/vm.add-disk", map[string]any{"path": diskPath(d.Serial), "readonly": d.ReadOnly, "id": deviceID(d.Serial), "serial": d.Serial})
	}
	if err != nil {
		return Place{}, fmt.Errorf("cannot attach disk %s: %w", d.Serial, err)
	}
	return Place{Disk: d.Serial}, nil
}

func (c cloudHypervisorControl) attached(ctx context.Context, serial string) (bool, error) {
	info, err := c.do(ctx, "GET", "/api/v1/vm.info", nil)
	// The identifier as a JSON string occurs nowhere but in the list of disks.
	return strings.Contains(string(info), `"`+deviceID(serial)+`"`), err
}

// Close does nothing: each request is a connection.
func (cloudHypervisorControl) Close() error { return nil }

// rest speaks HTTP over a unix socket to a monitor, one request a connection. net/http would do it,
// and make the supervisor, of which one runs beside every VM, twice as big.
type rest struct{ path string }

// maxRestBody bounds an answer: the configuration of a VM has some kilobytes.
const maxRestBody = 1 << 20

// do sends body as JSON (nil: none) and returns the answer's. An answer beyond 2xx is an error with
// the monitor's reason.
func (r rest) do(ctx context.Context, method, target string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	var content []byte
	if body != nil {
		if content, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, target, len(content), content)
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	status, answer, err := readAnswer(bufio.NewReader(io.LimitReader(conn, maxRestBody)))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target, errors.Join(err, context.Cause(ctx)))
	}
	if status/100 != 2 {
		return nil, fmt.Errorf("%s %s: status %d: %s", method, target, status, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// readAnswer reads one answer with a Content-Length, or without a body.
func readAnswer(r *bufio.Reader) (status int, body []byte, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, nil, err
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, nil, fmt.Errorf("%q is no answer", line)
	}
	if status, err = strconv.Atoi(fields[1]); err != nil {
		return 0, nil, fmt.Errorf("%q is no answer", line)
	}
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, nil, err
		}
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok {
			break
		}
		if strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxRestBody {
				return 0, nil, fmt.Errorf("the answer's length is %q", value)
			}
		}
	}
	body = make([]byte, length)
	_, err = io.ReadFull(r, body)
	return status, body, err
}
