package dbus

import (
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/pod"
)

// TestHostileText: whatever containers, images and registries say, every method that reads is
// answered and every signal comes. The bus refuses text with NUL or that is no UTF-8, and
// disconnects who sends it.
func TestHostileText(t *testing.T) {
	address := bustest.Start(t)
	backend := fakepods.New()
	s, err := Serve(t.Context(), fakepods.Hostile{Backend: backend}, ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); backend.Close() })
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	signals := make(chan client.Signal, 256)
	c.OnSignal(func(s client.Signal) { signals <- s })
	if err := c.Subscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	job, err := c.Run(t.Context(), []byte(webYAML), pod.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	path, err := c.Pod(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	id, _ := contract.JobOfPath(job)
	ask := func(path godbus.ObjectPath, method string, args ...any) {
		t.Helper()
		if call := c.Conn().Object(BusName, path).Call(method, 0, args...); call.Err != nil {
			t.Errorf("%s: %v", method, call.Err)
		}
	}
	for _, m := range []string{"ListPods", "ListJobs", "ListImages", "ListRuntimeClasses", "GetHostInfo"} {
		ask(ManagerPath, ManagerInterface+"."+m)
	}
	ask(ManagerPath, ManagerInterface+".DescribePods", "")
	ask(ManagerPath, ManagerInterface+".InspectImage", "x")
	archive, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	if _, err := archive.WriteString(fakepods.Text); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if refs, err := c.LoadImage(t.Context(), archive, pod.LoadOptions{}); err != nil || len(refs) != 1 || !strings.Contains(refs[0], "red") {
		t.Errorf("LoadImage: %q, %v", refs, err)
	}
	ask(ManagerPath, objectManagerInterface+".GetManagedObjects")
	ask(ManagerPath, propertiesInterface+".GetAll", ManagerInterface)
	for _, m := range []string{"GetManifest", "ListEvents", "GetStats"} {
		ask(path, PodInterface+"."+m)
	}
	ask(path, propertiesInterface+".GetAll", PodInterface)
	ask(contract.JobPath(id), propertiesInterface+".GetAll", JobInterface)
	if err := c.RemoveImage(t.Context(), "x", false); err == nil || !strings.Contains(err.Error(), "red") {
		t.Errorf("RemoveImage: %v, want the backend's error", err)
	}
	failed, err := c.PullImage(t.Context(), "example.org/missing", pod.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), failed, nil); pod.KindOf(err) != pod.NotFound || !strings.Contains(err.Error(), "red") {
		t.Errorf("the job: %v, want its own NotFound", err)
	}
	want := []string{"PodNew", "Event", "JobNew", "JobRemoved", "PropertiesChanged"}
	for end := time.After(30 * time.Second); len(want) > 0; {
		select {
		case s := <-signals:
			want = slices.DeleteFunc(want, func(name string) bool { return name == s.Name })
		case <-end:
			t.Fatalf("no signal %q", want)
		}
	}
}
