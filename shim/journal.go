package shim

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultJournalSocket = "/run/systemd/journal/socket"
	// maxJournalLine is how long a line may be before it is split; the parts but the last carry
	// [FieldPartial].
	maxJournalLine = 1 << 20
	// sendTimeout bounds one attempt to send, so that a stop is noticed while the journal does not read.
	sendTimeout = 100 * time.Millisecond
)

// journal writes lines to systemd-journald in its native protocol
// (systemd.io/JOURNAL_NATIVE_PROTOCOL), one datagram a line, over one connected socket; lines that
// do not fit into a datagram go as a sealed memory file. A journal that is slow or away makes the
// writer wait, not lose lines.
type journal struct {
	socket string
	fd     int // -1: not connected
	config *PauseConfig
	buffer []byte
	// giveUp says that waiting is over: the drain at the end has used up its time.
	giveUp func() bool
}

func newJournal(config *PauseConfig, giveUp func() bool) *journal {
	return &journal{socket: cmp.Or(config.JournalSocket, defaultJournalSocket), fd: -1, config: config, giveUp: giveUp}
}

// journalStream is one stream of one attempt.
type journalStream struct {
	journal *journal
	header  []byte // the fields that all of its lines have
}

func (j *journal) open(name logName) (lineWriter, error) {
	priority := "6" // info
	if name.stream == Stderr {
		priority = "3" // err, as docker and podman do
	}
	var header []byte
	field := func(key, value string) {
		header = append(header, key+"="+value+"\n"...)
	}
	c := j.config
	field("PRIORITY", priority)
	field("SYSLOG_IDENTIFIER", c.Pod+"-"+name.container)
	field(FieldNamespace, c.Namespace)
	field(FieldPod, c.Pod)
	field(FieldPodUID, c.UID)
	field(FieldContainer, name.container)
	field(FieldAttempt, strconv.Itoa(name.attempt))
	field(FieldStream, name.stream)
	field("CONTAINER_NAME", name.container)
	// journalctl -u believes this field when it comes from root. OBJECT_PID would make the journal
	// look at a process that may be gone, or be another one.
	if unit := c.Units[name.container]; unit != "" {
		field("OBJECT_SYSTEMD_UNIT", unit)
	}
	return &journalStream{journal: j, header: header}, nil
}

func (s *journalStream) maxLine() int        { return maxJournalLine }
func (s *journalStream) flush() (int, error) { return 0, nil }
func (s *journalStream) close() error        { return nil }

func (s *journalStream) write(line []byte, partial bool) (lost int, err error) {
	j := s.journal
	b := append(j.buffer[:0], s.header...)
	if partial {
		b = append(b, FieldPartial+"=true\n"...)
	}
	b = append(b, "MESSAGE="...)
	b = append(b, line...)
	b = append(b, '\n')
	j.buffer = b
	if err = j.send(b); err != nil {
		lost = 1
	}
	if cap(j.buffer) > 4*readSize {
		j.buffer = nil // do not keep a megabyte for one long line
	}
	return lost, err
}

// send sends one entry, and waits for as long as that takes.
func (j *journal) send(entry []byte) error {
	for wait := time.Duration(0); ; {
		err := j.connect()
		if err == nil {
			err = unix.Send(j.fd, entry, unix.MSG_NOSIGNAL)
			if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
				err = j.sendFile(entry)
			}
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case j.giveUp():
			return fmt.Errorf("cannot write to the journal: %w", err)
		case errors.Is(err, unix.EAGAIN):
			continue // the time-out of the socket has been waited for
		}
		// The journal was restarted, or is not there yet.
		j.disconnect()
		wait = min(max(2*wait, 10*time.Millisecond), 200*time.Millisecond)
		time.Sleep(wait)
	}
}

func (j *journal) connect() error {
	if j.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	timeout := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return err
	}
	// As the journal's own client does; without the privilege the system's limit is what we get.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<20)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: j.socket}); err != nil {
		unix.Close(fd)
		return err
	}
	j.fd = fd
	return nil
}

func (j *journal) disconnect() {
	if j.fd >= 0 {
		unix.Close(j.fd)
		j.fd = -1
	}
}

// sendFile sends an entry as a sealed memory file, passed in an empty datagram.
func (j *journal) sendFile(entry []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for rest := entry; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	return unix.Sendmsg(j.fd, nil, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
}
