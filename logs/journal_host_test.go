package logs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/tests/host"
)

// realJournal writes to this host's journal as the relay does.
type realJournal struct {
	*reading
	conn net.Conn
}

func newRealJournal(t *testing.T) *realJournal {
	t.Helper()
	conn := host.DialJournal(t)
	h := newReading(t)
	h.q.LogDir, h.q.PodUID = "", string(uuid.NewUUID())
	return &realJournal{h, conn}
}

func (j *realJournal) fields(attempt int, stream string) string {
	return fmt.Sprintf("PRIORITY=6\nMAGIKPOD_POD_UID=%s\nMAGIKPOD_CONTAINER=app\nMAGIKPOD_RESTART=%d\nMAGIKPOD_STREAM=%s\n", j.q.PodUID, attempt, stream)
}

func (j *realJournal) send(attempt int, stream, message string, partial bool) {
	j.t.Helper()
	entry := j.fields(attempt, stream)
	if partial {
		entry += "CONTAINER_PARTIAL_MESSAGE=true\n"
	}
	entry += "MESSAGE\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(message)))) + message + "\n"
	if _, err := io.WriteString(j.conn, entry); err != nil {
		j.t.Fatal(err)
	}
}

func TestLogJournalReal(t *testing.T) {
	j := newRealJournal(t)
	j.send(0, "stdout", "one", false)
	j.send(0, "stderr", "two \x00\xff bytes", false)
	j.send(1, "stdout", "other attempt", false)
	j.send(0, "stdout", strings.Repeat("long ", 10000), true)
	j.send(0, "stdout", "er", false)
	j.send(0, "stdout", "", false)
	j.send(0, "daemon", "not of the container", false)
	forge := exec.Command("logger", "--journald")
	forge.Stdin = strings.NewReader(j.fields(0, "stdout") + "MESSAGE=forged\n")
	forge.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := forge.CombinedOutput(); err != nil {
		t.Fatalf("no entry was forged: %v: %s", err, out)
	}
	if got := host.ReadJournal(t, "--output=cat", "_UID=65534", "MAGIKPOD_POD_UID="+j.q.PodUID); got != "forged\n" {
		t.Fatalf("the journal has %q of nobody, want the forged entry", got)
	}
	j.q.Ended = time.Now()
	all := []string{"one", "two \x00\xff bytes", strings.Repeat("long ", 10000) + "er", ""}
	for tail, want := range map[int][]string{-1: all, 2: {"er", ""}, 0: nil, 100: all} {
		j.q.Options.Tail = tail
		got := strings.Split(j.all(), "\n")
		if diff := cmp.Diff(append(want, ""), got); diff != "" {
			t.Errorf("tail %d (-want +got):\n%s", tail, diff)
		}
	}
	j.q.Options = pod.LogOptions{Tail: -1, Since: time.Now().Add(time.Hour)}
	j.want("")
	j.q.Options = pod.LogOptions{Tail: 1, Timestamps: true}
	stamp, _, _ := strings.Cut(j.all(), " ")
	if at, err := time.Parse(shim.CRITime, stamp); err != nil || time.Since(at).Abs() > time.Hour {
		t.Errorf("the stamp is %q: %v", stamp, err)
	}
}

// However fast the end comes, every line before it is shown, once.
func TestLogJournalRealFollow(t *testing.T) {
	j := newRealJournal(t)
	for attempt := range 3 {
		j.send(attempt, "stdout", "first", false)
	}
	for attempt := range 3 {
		j.q.Attempt = attempt
		j.q.Wait = func(context.Context) {
			for n := range 500 {
				j.send(attempt, "stdout", fmt.Sprintf("%d %d", attempt, n), false)
			}
		}
		f := j.follow(t.Context())
		f.want("first")
		for n := range 500 {
			f.want(fmt.Sprintf("%d %d", attempt, n))
		}
		f.wantEnd()
	}
}

// New lines are shown soon.
func TestLogJournalRealFollowNew(t *testing.T) {
	j := newRealJournal(t)
	j.q.Wait = make(life).wait
	j.send(0, "stdout", "old", false)
	_ = exec.Command("journalctl", "--sync").Run()
	j.q.Options.Tail = 0
	f := j.follow(t.Context())
	time.Sleep(time.Second) // the entry's time is later than the beginning of the reading
	j.send(0, "stdout", "new", false)
	f.want("new")
}
