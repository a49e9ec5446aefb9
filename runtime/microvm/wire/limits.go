package wire

import "time"

// Version is the version of the protocol. A request with a field that the agent does not know is
// refused, so that nothing is honoured by half; the number says to a host in advance what an agent
// of another build can do. It grows with every field and action that comes or goes.
const Version = 5

// Port is the vsock port of the agent.
const Port = 1024

// HostCID is the only peer that the agent serves (VMADDR_CID_HOST).
const HostCID = 2

// The limits, in bytes where nothing else is said. A manifest has at most 1 MiB, and its
// container's spec is made from it.
const (
	MaxRequest = 2 << 20 // of a request's line
	MaxReply   = 256 << 10
	MaxFrame   = 64 << 10 // payload of a frame
	Chunk      = 8 << 10  // what a sender puts into a frame of a stream; vhost-device-vsock 0.3 keeps one of 32 KiB until something else comes

	MaxArgs     = 256
	MaxArg      = 128<<10 - 1 // the kernel's own (MAX_ARG_STRLEN)
	MaxEnv      = 512         // entries; a container has at most 256, and those of its image and its process are added
	MaxMounts   = 128
	MaxNetwork  = 64 // addresses, and as many routes
	MaxShares   = 64
	MaxSysctls  = 64
	MaxMessage  = 4096 // of a termination message (its end), of an error, of what a probe says
	MaxCopy     = 64 << 20
	MaxEntries  = 8192 // files and directories of one copy
	MaxHeaders  = 32   // of an HTTP probe
	MaxPathSize = 4096

	// MaxConnections is how many connections the agent serves at once, and MaxContainers how many
	// containers a VM has.
	MaxConnections = 128
	MaxContainers  = 32
)

// MaxClockError is how far the clock of a VM may be from the host's before it is set again.
const MaxClockError = time.Second

// LineTimeout is how long the first line of a connection may take to arrive.
const LineTimeout = 30 * time.Second

// MaxWait is the longest time that a request may ask for.
const MaxWait = time.Hour
