package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

// all are one request of each kind, as full as it can be.
func all() []Request {
	return []Request{
		&Ping{}, &Ping{Time: time.Unix(1, 2).UTC()}, &PowerOff{}, &Copy{Volume: "etc.a"},
		&Configure{
			Hostname: "web", Time: time.Unix(1, 2).UTC(), Scratch: "scratch", Shares: []string{"share"}, SharePID: true, Sysctls: map[string]string{"net.core.somaxconn": "5"},
			Network: &Network{
				MAC: "02:00:00:00:00:01", MTU: 1400, Addresses: []string{"10.0.0.2/24", "fd00::2/64"},
				Routes: []Route{{Via: "10.0.0.1"}, {Via: "fd00::1"}},
			},
		},
		&Create{
			Container: "a", ID: "abc", Spec: json.RawMessage(`{"x":1}`), Rootfs: Image{Disk: "image"},
			Mounts: []Mount{{Kind: MountScratch, Name: "v", SubPath: "a/b", ReadOnly: true, Mode: 0o3777, GID: 5}, {Kind: MountTmpfs, Name: "v", Bytes: 5}, {Kind: MountMessage}},
		},
		&Create{
			Container: "b", ID: "b", Spec: json.RawMessage(`{}`), Rootfs: Image{Share: "host", File: "img-1.erofs"},
			Mounts: []Mount{{Kind: MountImage, Image: &Image{Disk: "d"}, SubPath: "a", ReadOnly: true}, {Kind: MountImage, Image: &Image{Share: "host", File: "img-2.erofs"}}},
		},
		&Start{Container: "a", ID: "abc"}, &Signal{Container: "a", Signal: 15},
		&Exec{Container: "a", Args: []string{"sh"}, Env: []string{"A=1"}, Cwd: "/", User: "root", TTY: true, Size: &Size{24, 80}, Stdin: true, Timeout: 5},
		&Probe{Container: "a", Timeout: 5, HTTP: &HTTPProbe{Scheme: "https", Host: "::1", Port: 80, Path: "/x?y", Headers: []Header{{"A", "b"}}}},
		&Stats{}, &Update{Container: "a", Resources: json.RawMessage(`{}`)},
	}
}

// TestRequests: each comes out as it went in, as one line that begins with its action.
func TestRequests(t *testing.T) {
	seen := map[Action]bool{}
	for _, want := range all() {
		line, err := EncodeRequest(want)
		if err != nil {
			t.Fatalf("%s: %v", want.Name(), err)
		}
		if !strings.HasPrefix(string(line), `{"action":"`+string(want.Name())+`"`) || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Errorf("line %q", line)
		}
		got, err := DecodeRequest(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Errorf("%s: %v", want.Name(), err)
			continue
		}
		// The action is the one thing that only the other side has.
		reflect.ValueOf(want).Elem().FieldByName("Head").Set(reflect.ValueOf(Head{want.Name()}))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		seen[want.Name()] = true
	}
	if len(seen) != 11 {
		t.Errorf("%d actions were tried", len(seen))
	}
}

// TestRefused: what cannot be is refused on both sides.
func TestRefused(t *testing.T) {
	long := strings.Repeat("x", MaxArg+1)
	create := Create{Container: "a", ID: "b", Spec: json.RawMessage("{}"), Rootfs: Image{Disk: "d"}}
	with := func(change func(*Create)) *Create { c := create; change(&c); return &c }
	for name, r := range map[string]Request{
		"no name":             &Start{ID: "a"},
		"name of 64":          &Signal{Signal: 15, Container: strings.Repeat("a", 64)},
		"name as a path":      &Signal{Signal: 15, Container: "a/b"},
		"name up":             &Signal{Signal: 15, Container: ".."},
		"name as an option":   &Signal{Signal: 15, Container: "-f"},
		"name with NUL":       &Signal{Signal: 15, Container: "a\x00"},
		"no ID":               &Start{Container: "a"},
		"signal 0":            &Signal{Container: "a"},
		"signal 65":           &Signal{Container: "a", Signal: 65},
		"time to wait":        &Exec{Container: "a", Args: []string{"x"}, Timeout: MaxWait.Milliseconds() + 1},
		"no command":          &Exec{Container: "a"},
		"empty command":       &Exec{Container: "a", Args: []string{""}},
		"long argument":       &Exec{Container: "a", Args: []string{long}},
		"many arguments":      &Exec{Container: "a", Args: make([]string, MaxArgs+1)},
		"relative directory":  &Exec{Container: "a", Args: []string{"x"}, Cwd: "x"},
		"variable":            &Exec{Container: "a", Args: []string{"x"}, Env: []string{"=x"}},
		"size of no terminal": &Exec{Container: "a", Args: []string{"x"}, Size: &Size{}},
		"no probe":            &Probe{Container: "a"},
		"two probes":          &Probe{Container: "a", Exec: []string{"x"}, TCP: &TCPProbe{Port: 1}},
		"port 0":              &Probe{Container: "a", TCP: &TCPProbe{}},
		"scheme":              &Probe{Container: "a", HTTP: &HTTPProbe{Port: 1, Scheme: "file"}},
		"volume":              &Copy{Volume: "a/../b"},
		"no spec":             with(func(c *Create) { c.Spec = nil }),
		"no root":             with(func(c *Create) { c.Rootfs = Image{} }),
		"two roots":           with(func(c *Create) { c.Rootfs = Image{Disk: "d", Share: "x", File: "y"} }),
		"disk with a file":    with(func(c *Create) { c.Rootfs.File = "x" }),
		"share without file":  with(func(c *Create) { c.Rootfs = Image{Share: "x"} }),
		"root up":             with(func(c *Create) { c.Rootfs = Image{Share: "x", File: ".."} }),
		"root deep":           with(func(c *Create) { c.Rootfs = Image{Share: "x", File: "a/b"} }),
		"share up":            with(func(c *Create) { c.Rootfs = Image{Share: "../x", File: "a"} }),
		"no image":            with(func(c *Create) { c.Mounts = []Mount{{Kind: MountImage}} }),
		"image with a name":   with(func(c *Create) { c.Mounts = []Mount{{Kind: MountImage, Name: "x", Image: &Image{Disk: "d"}}} }),
		"image of a copy":     with(func(c *Create) { c.Mounts = []Mount{{Kind: MountCopy, Name: "x", Image: &Image{Disk: "d"}}} }),
		"image up":            with(func(c *Create) { c.Mounts = []Mount{{Kind: MountImage, Image: &Image{Share: "x", File: "../y"}}} }),
		"image's mount up":    with(func(c *Create) { c.Mounts = []Mount{{Kind: MountImage, Image: &Image{Disk: "d"}, SubPath: ".."}} }),
		"many mounts":         with(func(c *Create) { c.Mounts = make([]Mount, MaxMounts+1) }),
		"kind":                with(func(c *Create) { c.Mounts = []Mount{{Kind: "host", Name: "x"}} }),
		"absolute sub path":   with(func(c *Create) { c.Mounts = []Mount{{Kind: MountCopy, Name: "x", SubPath: "/etc"}} }),
		"mount up":            with(func(c *Create) { c.Mounts = []Mount{{Kind: MountCopy, Name: "x", SubPath: "a/.."}} }),
		"sysctl up":           &Configure{Sysctls: map[string]string{"net/../../../etc/passwd": "x"}},
		"address":             &Configure{Network: &Network{MAC: "02:00:00:00:00:01", Addresses: []string{"10.0.0.1"}}},
		"route":               &Configure{Network: &Network{MAC: "02:00:00:00:00:01", Routes: []Route{{}}}},
		"hardware address":    &Configure{Network: &Network{MAC: "x"}},
		"no limits":           &Update{Container: "a"},
	} {
		if _, err := EncodeRequest(r); CodeOf(err) != CodeInvalidRequest {
			t.Errorf("%s: sent: %v", name, err)
		}
		data, err := json.Marshal(r)
		if err != nil {
			continue // it cannot be written at all
		}
		line := bytes.Replace(data, []byte(`"action":""`), []byte(`"action":"`+r.Name()+`"`), 1)
		if got, err := DecodeRequest(line); CodeOf(err) != CodeInvalidRequest {
			t.Errorf("%s: received as %+v: %v", name, got, err)
		}
	}
}

// endless is a stream of one byte that never ends. It counts what is taken.
type endless struct{ n int }

func (e *endless) Read(data []byte) (int, error) {
	for i := range data {
		data[i] = 'x'
	}
	e.n += len(data)
	return len(data), nil
}

// TestBounds: too much is refused as soon as it is known, and takes no memory before.
func TestBounds(t *testing.T) {
	source := &endless{}
	if _, err := ReadLine(bufio.NewReaderSize(source, 4096), 100000); !errors.Is(err, ErrTooLong) || source.n > 110000 {
		t.Errorf("%v after %d bytes", err, source.n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, size := range []string{"\xff\xff\xff\xff", "\x00\x01\x00\x01", "\x7f\x00\x00\x00"} {
		if _, err := ReadFrame(bufio.NewReader(strings.NewReader("o"+size)), nil); !errors.Is(err, ErrTooLong) {
			t.Errorf("frame of %q: %v", size, err)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 100<<10 {
		t.Errorf("refusing took %d bytes", grown)
	}
	if _, err := AppendFrame(nil, FrameStdout, make([]byte, MaxFrame+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("a frame that is too long: %v, want ErrTooLong", err)
	}
	if _, err := EncodeReply(StatsReply{Containers: make([]ContainerStats, 10000)}); !errors.Is(err, ErrTooLong) {
		t.Errorf("a reply that is too long: %v, want ErrTooLong", err)
	}
	if _, err := EncodeRequest(&Create{Container: "a", ID: "b", Spec: json.RawMessage(`{"x":"` + strings.Repeat("x", MaxRequest) + `"}`), Rootfs: Image{Disk: "d"}}); !errors.Is(err, ErrTooLong) {
		t.Errorf("a request that is too long: %v, want ErrTooLong", err)
	}
}

func TestReadLine(t *testing.T) {
	for text, want := range map[string]error{"": io.EOF, "abc": io.ErrUnexpectedEOF, "abc\n": nil, "\n": nil, strings.Repeat("x", 20) + "\n": nil, strings.Repeat("x", 21) + "\n": ErrTooLong} {
		line, err := ReadLine(bufio.NewReaderSize(strings.NewReader(text), 16), 20)
		if !errors.Is(err, want) || err == nil && string(line)+"\n" != text {
			t.Errorf("%q: %q %v", text, line, err)
		}
	}
}

// TestErrors: the other side's words are made harmless, and an unknown code is no code.
func TestErrors(t *testing.T) {
	e := Errorf(CodeExecFailed, "bad\x1b[31m\nnews %s", strings.Repeat("é", MaxMessage))
	e.Exit = 127
	got, ok := errors.AsType[*Error](DecodeReply(bytes.TrimSpace(EncodeError(e)), nil))
	if !ok || got.Code != CodeExecFailed || got.Exit != 127 || strings.ContainsAny(got.Message, "\x1b\n") || len(got.Message) > MaxMessage {
		t.Errorf("the error came as %+v, want exec-failed, 127 and a short, printable message", got)
	}
	if line := string(EncodeError(io.EOF)); line != `{"status":"error","code":"internal","message":"EOF"}`+"\n" {
		t.Errorf("an error without a code is encoded as %q, want an internal one", line)
	}
	for _, line := range []string{"", "null", "[]", `{"status":"ok"}`, `{"status":"error","code":"strange"}`, `{"status":"ok","data":{"code":"x"}}`} {
		var exit Exit
		if err := DecodeReply([]byte(line), &exit); err == nil || CodeOf(err) != CodeInternal {
			t.Errorf("%q: %v", line, err)
		}
	}
	exit := Exit{Code: 1 << 30, Signal: -5, Message: bytes.Repeat([]byte("x"), 2*MaxMessage)}
	if exit.Check(); exit.Code != 255 || exit.Signal != 0 || len(exit.Message) != MaxMessage {
		t.Errorf("an exit out of range became %+v, want code 255, no signal and a message of the largest size", exit)
	}
	probe := ProbeReply{Message: "red \x1b[31mtext\nand\x00 more\xff " + strings.Repeat("x", 2*MaxMessage)}
	if probe.Check(); len(probe.Message) > MaxMessage || !strings.HasPrefix(probe.Message, `red \x1b[31mtext and\x00 more\xff xxx`) {
		t.Errorf("a probe's message became %q, want one short printable line", probe.Message)
	}
	if exit = (Exit{Code: 0, Signal: 9}); true {
		if exit.Check(); exit.Code != 137 {
			t.Errorf("an exit by signal 9 became %+v, want code 137", exit)
		}
	}
}

// FuzzRequest: whatever is accepted can be sent again, and is the same.
func FuzzRequest(f *testing.F) {
	for _, r := range all() {
		line, err := EncodeRequest(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimSpace(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := DecodeRequest(line)
		if err != nil {
			if CodeOf(err) != CodeInvalidRequest {
				t.Fatalf("a request was refused with %v, want an invalid request", err)
			}
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		second, err := DecodeRequest(again)
		if err != nil {
			t.Fatalf("%q became %q, which is refused: %v", line, again, err)
		}
		if third, err := json.Marshal(second); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%q became %q and %q (%v)", line, again, third, err)
		}
	})
}

// FuzzReply: no reply makes the host take an error for a success or keeps what could do harm.
func FuzzReply(f *testing.F) {
	for _, line := range []string{`{"status":"ok","data":{"type":"pong"}}`, `{"status":"error","code":"internal","message":"x"}`, `{"status":"ok","data":{"code":-1,"signal":99}}`} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var exit Exit
		err := DecodeReply(line, &exit)
		if e, ok := errors.AsType[*Error](err); ok && (!e.Code.known() || len(e.Message) > MaxMessage || strings.ContainsAny(e.Message, "\n\x1b")) {
			t.Fatalf("the error %+v has an unknown code, or a message that is too long or not printable", e)
		}
		if exit.Check(); exit.Code < 0 || exit.Code > 255 || exit.Signal < 0 || exit.Signal > 64 || len(exit.Message) > MaxMessage {
			t.Fatalf("the exit %+v is out of range after its check", exit)
		}
	})
}

// FuzzFrames: what is read is within the bounds, and written again it is the same.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x02hix\x00\x00\x00\x00"))
	f.Add([]byte("i\xff\xff\xff\xff"))
	f.Add([]byte("?\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		var again, buffer []byte
		for {
			frame, err := ReadFrame(r, buffer)
			if err != nil {
				break
			}
			if len(frame.Data) > MaxFrame {
				t.Fatalf("%d bytes", len(frame.Data))
			}
			buffer = frame.Data
			if again, err = AppendFrame(again, frame.Type, frame.Data); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(data, again) {
			t.Fatalf("%q became %q", data, again)
		}
	})
}

// TestConnect: the answer is read up to its end and no further, and is believed only when it says OK.
func TestConnect(t *testing.T) {
	for _, tc := range []struct{ answer, left, err string }{
		{"OK 5\nhello", "hello", ""},
		{"NO\n", "", `the VMM answered "NO"`},
		{"OK " + strings.Repeat("5", 100), strings.Repeat("5", 71), "the VMM's answer is too long"},
		{"OK", "", "EOF"},
	} {
		answer := strings.NewReader(tc.answer)
		var asked bytes.Buffer
		err := Connect(struct {
			io.Reader
			io.Writer
		}{answer, &asked}, 1024)
		left, _ := io.ReadAll(answer)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if asked.String() != "CONNECT 1024\n" || text != tc.err || string(left) != tc.left {
			t.Errorf("%.20q: asked %q, error %q and %q left; expected error %q and %q left", tc.answer, asked.String(), text, left, tc.err, tc.left)
		}
	}
}
