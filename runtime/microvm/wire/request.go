package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Action names a request.
type Action string

// The actions.
const (
	ActionPing      Action = "ping"
	ActionConfigure Action = "configure"
	ActionCopy      Action = "copy"
	ActionCreate    Action = "create"
	ActionStart     Action = "start"
	ActionSignal    Action = "signal"
	ActionExec      Action = "exec"
	ActionProbe     Action = "probe"
	ActionStats     Action = "stats"
	ActionUpdate    Action = "update"
	ActionPowerOff  Action = "poweroff"
)

// Head is the beginning of every request. [EncodeRequest] fills it in.
type Head struct {
	Action Action `json:"action"`
}

// Request is one of the request types of this package, by value or pointer.
type Request interface {
	// Name is the action that the type stands for.
	Name() Action
	// Check returns an [*Error] of the code [CodeInvalidRequest] when the request cannot be served
	// by any agent.
	Check() error
}

// Ping asks whether the agent is there. Reply: [Pong].
type Ping struct {
	Head
	// Time sets the clock of a VM that has been configured, when it is off by more than
	// [MaxClockError]; the zero time leaves it.
	Time time.Time `json:"time,omitzero"`
}

// Configure sets up the VM. It may be repeated: what is mounted stays, the network becomes what is
// said, and containers go on. It must have succeeded once before the first Create.
type Configure struct {
	Head
	Hostname string `json:"hostname,omitempty"`
	// Time sets the clock; the zero time leaves it.
	Time    time.Time `json:"time,omitzero"`
	Network *Network  `json:"network,omitempty"`
	// Scratch is the serial of the disk for containers' writable layers and emptyDirs, a file
	// system of ext4. Empty: they are in the memory of the VM.
	Scratch string `json:"scratch,omitempty"`
	// Shares are the tags of virtiofs file systems to mount.
	Shares []string `json:"shares,omitempty"`
	// SharePID asks for one PID namespace for all containers (shareProcessNamespace).
	SharePID bool `json:"share_pid,omitempty"`
	// Sysctls are set in the VM, by name (net.ipv4.ip_forward).
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Network is the VM's one network interface, eth0; lo is always set up.
type Network struct {
	// MAC is the hardware address that the interface is found by, with colons.
	MAC string `json:"mac"`
	// MTU in bytes; 0: as it is.
	MTU int `json:"mtu,omitempty"`
	// Addresses are IPv4 and IPv6 addresses with prefix length.
	Addresses []string `json:"addresses,omitempty"`
	Routes    []Route  `json:"routes,omitempty"`
}

// Route is the default route of a family.
type Route struct {
	// Via is the gateway, reachable on the interface even if no prefix covers it.
	Via string `json:"via"`
}

// Copy sends a volume that the VM keeps in memory (configMap, secret, files of /etc). After a first
// ok the host sends a tar stream in data frames, an empty one at its end, and the agent replies
// again. The volume is made equal to the stream, file by file in the order of the stream, and what
// the stream has not is removed last: a container that has it mounted sees the new files.
type Copy struct {
	Head
	Volume string `json:"volume"`
}

// Create makes a container, whose standard input is empty. After the ok the connection is the
// owner's: frames of stdout, stderr and at the end exit from the agent. When it closes, the
// container is killed and removed.
type Create struct {
	Head
	Container string `json:"container"`
	ID        string `json:"id"` // of the attempt, chosen by the host
	// Spec is the OCI runtime spec, config.json, without network, IPC and UTS namespaces, which are
	// the VM's. root.path and the path of a PID namespace that is shared are the agent's to fill
	// in. A bind mount whose source is MountSource(i) gets Mounts[i]; other bind sources are paths
	// in the VM.
	Spec json.RawMessage `json:"spec"`
	// Rootfs is the read-only part of the container's root file system. Above it lies a writable
	// layer of the attempt.
	Rootfs Image   `json:"rootfs"`
	Mounts []Mount `json:"mounts,omitempty"`
}

// Image is an erofs: a disk or a file, one of the two.
type Image struct {
	// Disk is the serial of the disk.
	Disk string `json:"disk,omitempty"`
	// Share is the tag of the virtiofs file system that File is in, and File its name there.
	Share string `json:"share,omitempty"`
	File  string `json:"file,omitempty"`
}

// MountKind says where a mount comes from.
type MountKind string

// The kinds of mounts.
const (
	MountCopy    MountKind = "copy"    // Name is a volume that Copy has sent
	MountScratch MountKind = "scratch" // Name is a directory on the scratch disk, made when it is missing, kept for as long as the disk is (emptyDir)
	MountTmpfs   MountKind = "tmpfs"   // Name is a tmpfs of all containers, made when it is missing (emptyDir with medium Memory)
	MountShare   MountKind = "share"   // Name is the tag of a virtiofs file system
	MountImage   MountKind = "image"   // Image says what, and there is no Name
	MountMessage MountKind = "message" // an empty file of the attempt's own, whose end comes back in Exit.Message
)

// Mount is what one bind mount of the spec shows.
type Mount struct {
	Kind MountKind `json:"kind"`
	Name string    `json:"name,omitempty"`
	// Image (image) is what the mount shows.
	Image *Image `json:"image,omitempty"`
	// SubPath is a path below the source, out of which no symlink leads; a missing directory is
	// made. Empty: the source itself.
	SubPath string `json:"sub_path,omitempty"`
	// ReadOnly makes it read-only below the container too.
	ReadOnly bool `json:"read_only,omitempty"`
	// Mode (scratch, tmpfs) is that of the directory when it is made, with the bits 01000 and
	// 02000; 0: 0777.
	Mode uint32 `json:"mode,omitempty"`
	// GID (scratch, tmpfs) is its group when it is made.
	GID uint32 `json:"gid,omitempty"`
	// Bytes (tmpfs) is its size; 0: half of the VM's memory.
	Bytes int64 `json:"bytes,omitempty"`
}

// MountSource is the source of the spec's bind mount that shows Create.Mounts[i].
func MountSource(i int) string { return fmt.Sprintf("/magikpod/mount/%d", i) }

// Start starts a created container.
type Start struct {
	Head
	Container string `json:"container"`
	ID        string `json:"id"`
}

// Signal sends a signal to a container's first process.
type Signal struct {
	Head
	Container string `json:"container"`
	ID        string `json:"id,omitempty"` // empty: whichever
	Signal    int    `json:"signal"`
}

// Exec runs a process in a running container. After the ok frames follow, of stdin and resize to
// the agent, and from it as with Create. When the connection closes, the process and all that it
// has started are killed.
type Exec struct {
	Head
	Container string   `json:"container"`
	Args      []string `json:"args"`
	Env       []string `json:"env,omitempty"` // KEY=VALUE, added to the container's
	Cwd       string   `json:"cwd,omitempty"` // empty: the container's
	// User is USER[:GROUP], names or numbers, by the container's files; empty: the container's.
	User  string `json:"user,omitempty"`
	TTY   bool   `json:"tty,omitempty"`
	Size  *Size  `json:"size,omitempty"` // with TTY
	Stdin bool   `json:"stdin,omitempty"`
	// Timeout in milliseconds ends the process with SIGKILL, and Exit.TimedOut says so; 0: none.
	Timeout int64 `json:"timeout_ms,omitempty"`
}

// Probe asks whether a container is well. Exactly one of Exec, HTTP and TCP is set. Reply: [ProbeReply].
type Probe struct {
	Head
	Container string `json:"container"`
	// Timeout in milliseconds; 0: one second, as in Kubernetes.
	Timeout int64      `json:"timeout_ms,omitempty"`
	Exec    []string   `json:"exec,omitempty"` // success: exit code 0
	HTTP    *HTTPProbe `json:"http,omitempty"`
	TCP     *TCPProbe  `json:"tcp,omitempty"`
}

// HTTPProbe is a GET request whose success is a status of 200 to 399.
type HTTPProbe struct {
	Scheme string `json:"scheme,omitempty"` // http (also when empty) or https; certificates are not checked, as in Kubernetes
	// Host is the address; empty: 127.0.0.1.
	Host    string   `json:"host,omitempty"`
	Port    int      `json:"port"`
	Path    string   `json:"path,omitempty"` // with the query
	Headers []Header `json:"headers,omitempty"`
}

// Header is a header of an HTTP request.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCPProbe is a connection.
type TCPProbe struct {
	Host string `json:"host,omitempty"` // empty: 127.0.0.1
	Port int    `json:"port"`
}

// Stats asks for what the containers use. Reply: [StatsReply].
type Stats struct {
	Head
}

// Update changes the limits of a container.
type Update struct {
	Head
	Container string `json:"container"`
	// Resources is linux.resources of the OCI runtime spec; what it does not name stays.
	Resources json.RawMessage `json:"resources"`
}

// PowerOff kills the containers, writes the disks and ends the VM. The reply comes before that.
type PowerOff struct {
	Head
}

// The names of the actions.

func (Ping) Name() Action      { return ActionPing }
func (Configure) Name() Action { return ActionConfigure }
func (Copy) Name() Action      { return ActionCopy }
func (Create) Name() Action    { return ActionCreate }
func (Start) Name() Action     { return ActionStart }
func (Signal) Name() Action    { return ActionSignal }
func (Exec) Name() Action      { return ActionExec }
func (Probe) Name() Action     { return ActionProbe }
func (Stats) Name() Action     { return ActionStats }
func (Update) Name() Action    { return ActionUpdate }
func (PowerOff) Name() Action  { return ActionPowerOff }

// newRequest is a pointer to the type of an action; nil when there is none of that name.
func newRequest(action Action) Request {
	for _, r := range []Request{
		&Ping{}, &Configure{}, &Copy{}, &Create{}, &Start{}, &Signal{}, &Exec{}, &Probe{}, &Stats{}, &Update{}, &PowerOff{},
	} {
		if r.Name() == action {
			return r
		}
	}
	return nil
}

// EncodeRequest checks a request and makes its line. A request above [MaxRequest] is [ErrTooLong].
func EncodeRequest(request Request) ([]byte, error) {
	if err := request.Check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("cannot make a request: %w", err)
	}
	// Head is the first field of every type.
	empty, action := []byte(`{"action":""`), []byte(`{"action":"`+request.Name()+`"`)
	if bytes.HasPrefix(data, empty) {
		data = append(action, data[len(empty):]...)
	}
	if len(data) > MaxRequest {
		return nil, fmt.Errorf("cannot send a request of %d bytes: %w", len(data), ErrTooLong)
	}
	return append(data, '\n'), nil
}

// DecodeRequest reads and checks a request; it is a pointer to one of the types. All errors are an
// [*Error] of the code [CodeInvalidRequest].
func DecodeRequest(line []byte) (Request, error) {
	var head Head
	if err := json.Unmarshal(line, &head); err != nil {
		return nil, Errorf(CodeInvalidRequest, "cannot read the request: %v", err)
	}
	request := newRequest(head.Action)
	if request == nil {
		return nil, Errorf(CodeInvalidRequest, "cannot serve the request: there is no action %.40q", head.Action)
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(request); err != nil {
		return nil, Errorf(CodeInvalidRequest, "cannot read the request %s: %v", head.Action, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, Errorf(CodeInvalidRequest, "cannot read the request %s: something follows it", head.Action)
	}
	if err := request.Check(); err != nil {
		return nil, err
	}
	return request, nil
}
