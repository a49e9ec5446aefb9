package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/magikrun/magikpod/tests/host"
)

// patience is how long await waits: long enough for a slow and busy host.
var patience = host.Patience(60 * time.Second)

type command = func(ts *testscript.TestScript, neg bool, args []string)

func commands() map[string]command {
	return map[string]command{
		"ctl":     ctl,
		"status":  status,
		"until":   until,
		"field":   field,
		"await":   await,
		"said":    said,
		"oneline": oneline,
		"let":     let,
		"http":    httpGet,
		"udp":     udp,
	}
}

// condition knows [program:NAME], [class:NAME] and [accel:NAME].
func (c class) condition(cond string) (bool, error) {
	if name, ok := strings.CutPrefix(cond, "class:"); ok {
		return name == c.name, nil
	}
	if name, ok := strings.CutPrefix(cond, "accel:"); ok {
		return name == host.Accel(), nil
	}
	if name, ok := strings.CutPrefix(cond, "program:"); ok {
		_, err := exec.LookPath(name)
		return err == nil, nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

func ctl(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("magikpodctl", append([]string{"-n", ts.Getenv("NS")}, args...)...)
	if (err != nil) != neg {
		ts.Fatalf("magikpodctl %s: %v", strings.Join(args, " "), err)
	}
}

// own puts the script's namespace into a command that is magikpodctl's.
func own(ts *testscript.TestScript, args []string) []string {
	if args[0] == "ctl" {
		return append([]string{"magikpodctl", "-n", ts.Getenv("NS")}, args[1:]...)
	}
	return args
}

func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N CMD ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	args = own(ts, args[1:])
	err = ts.Exec(args[0], args[1:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	if got != want {
		ts.Fatalf("%s: exit status %d, want %d", strings.Join(args, " "), got, want)
	}
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] until TIME CMD ARGS...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	args = own(ts, args[1:])
	retry(ts, host.Patience(limit), func() string {
		if err := ts.Exec(args[0], args[1:]...); (err != nil) != neg {
			return fmt.Sprintf("%s: %v", strings.Join(args, " "), err)
		}
		return ""
	})
}

// retry calls try until it returns "" or the time is up.
func retry(ts *testscript.TestScript, limit time.Duration, try func() string) {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		problem := try()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("still after %v: %s", limit, problem)
		}
	}
}

func field(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: field POD PATH REGEXP")
	}
	if problem := lookAt(ts, args[0], args[1], args[2]); problem != "" {
		ts.Fatalf("%s", problem)
	}
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: await POD PATH REGEXP")
	}
	retry(ts, patience, func() string { return lookAt(ts, args[0], args[1], args[2]) })
}

// said waits for a line of a container's log. "Running" says that the container was started, not
// that it has come to write something.
func said(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: said POD NAME REGEXP")
	}
	want, err := regexp.Compile("(?m)" + args[2])
	ts.Check(err)
	retry(ts, patience, func() string {
		err := ts.Exec("magikpodctl", "-n", ts.Getenv("NS"), "logs", "-c", args[1], args[0])
		if err != nil || !want.MatchString(ts.ReadFile("stdout")) {
			return fmt.Sprintf("container %s of pod %s has not said %s (%v)", args[1], args[0], args[2], err)
		}
		return ""
	})
}

// lookAt compares a value of a pod with a regular expression for the whole of it; it returns what
// is wrong.
func lookAt(ts *testscript.TestScript, name, path, want string) string {
	cmd := exec.Command("magikpodctl", "-n", ts.Getenv("NS"), "get", name, "-o", "json")
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return fmt.Sprintf("get %s: %v: %s", name, err, problem.String())
	}
	var v any
	ts.Check(json.Unmarshal(out, &v))
	got := "<none>"
	if v = walk(v, path); v != nil {
		if s, ok := v.(string); ok {
			got = s
		} else {
			text, err := json.Marshal(v)
			ts.Check(err)
			got = string(text)
		}
	}
	match, err := regexp.MatchString("^(?:"+want+")$", got)
	ts.Check(err)
	if !match {
		return fmt.Sprintf("pod %s: %s is %s, want %s; the pod:\n%s", name, path, got, want, out)
	}
	return ""
}

var pathStep = regexp.MustCompile(`^([^.\[]+)|^\[([^\]]*)\]|^\.`)

// walk follows a path such as status.conditions[Ready].status: [X] is the element of a list with
// the name, type or number X.
func walk(v any, path string) any {
	for path != "" {
		m := pathStep.FindStringSubmatch(path)
		if m == nil {
			return nil
		}
		path = path[len(m[0]):]
		switch {
		case m[1] != "":
			object, _ := v.(map[string]any)
			v = object[m[1]]
		case m[2] != "":
			v = element(v, m[2])
		}
		if v == nil {
			return nil
		}
	}
	return v
}

func element(v any, key string) any {
	list, _ := v.([]any)
	if i, err := strconv.Atoi(key); err == nil {
		if i < len(list) {
			return list[i]
		}
		return nil
	}
	for _, e := range list {
		if object, _ := e.(map[string]any); object["name"] == key || object["type"] == key {
			return e
		}
	}
	return nil
}

// oneline wants one line for people on standard error, and nothing else.
func oneline(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: oneline REGEXP")
	}
	text := ts.ReadFile("stderr")
	line, rest, ended := strings.Cut(text, "\n")
	if !ended || rest != "" || !strings.HasPrefix(line, "magikpodctl: ") {
		ts.Fatalf("standard error is not one line of magikpodctl: %q", text)
	}
	match, err := regexp.MatchString(args[0], line)
	ts.Check(err)
	if !match {
		ts.Fatalf("standard error is %q, want %s", line, args[0])
	}
}

func let(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: let NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// aloneCommands are those that touch the daemon of all scripts.
func aloneCommands() map[string]command {
	return map[string]command{
		"configure":      configure,
		"crash":          crash,
		"leaves-nothing": leavesNothing,
		"remount":        remount,
	}
}

func configure(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: configure FILE")
	}
	ts.Check(os.WriteFile(configFile, []byte(ts.ReadFile(args[0])), 0o600))
	ts.Defer(func() {
		// The pods of the script go first, while the daemon knows where they are.
		if out, err := exec.Command("magikpodctl", "-n", ts.Getenv("NS"), "delete", "--all", "--force").CombinedOutput(); err != nil {
			ts.Logf("cannot delete the pods of the script: %v: %s", err, out)
		}
		ts.Check(os.WriteFile(configFile, []byte(baseConfig), 0o600))
		restartDaemon(ts)
	})
	restartDaemon(ts)
}

// remount makes the file system of a mount point read-only (ro) or writable (rw), which it is again
// when the script ends.
func remount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: remount ro|rw MOUNTPOINT")
	}
	to := func(mode string) {
		if out, err := exec.Command("mount", "-o", "remount,"+mode, args[1]).CombinedOutput(); err != nil {
			ts.Fatalf("cannot remount %s: %v: %s", args[1], err, out)
		}
	}
	to(args[0])
	ts.Defer(func() { to("rw") })
}

func restartDaemon(ts *testscript.TestScript) {
	for _, args := range [][]string{{"reset-failed", "magikpodd.service"}, {"restart", "magikpodd.service"}} {
		if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil && args[0] == "restart" {
			ts.Fatalf("cannot restart the daemon: %v: %s", err, out)
		}
	}
}

func crash(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: crash")
	}
	before := daemonPID(ts)
	if before == "0" {
		ts.Fatalf("the daemon does not run")
	}
	// systemd gives up after five starts in ten seconds, and a script may want more.
	_ = exec.Command("systemctl", "reset-failed", "magikpodd.service").Run()
	if out, err := exec.Command("systemctl", "kill", "--signal=KILL", "magikpodd.service").CombinedOutput(); err != nil {
		ts.Fatalf("cannot kill the daemon: %v: %s", err, out)
	}
	retry(ts, patience, func() string {
		out, _ := exec.Command("systemctl", "is-active", "magikpodd.service").Output()
		if pid := daemonPID(ts); strings.TrimSpace(string(out)) != "active" || pid == before || pid == "0" {
			return fmt.Sprintf("the daemon is %s, its process %s, and was %s", strings.TrimSpace(string(out)), pid, before)
		}
		return ""
	})
}

func daemonPID(ts *testscript.TestScript) string {
	out, err := exec.Command("systemctl", "show", "--property=MainPID", "--value", "magikpodd.service").Output()
	ts.Check(err)
	return strings.TrimSpace(string(out))
}

func leavesNothing(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: leaves-nothing")
	}
	before, _ := ts.Value(worldKey{}).([]string)
	diff, err := leftovers(world, before)
	ts.Check(err)
	if diff != "" {
		ts.Fatalf("something is left, or gone (-before +after):\n%s", diff)
	}
}

// httpGet asks the server on a unix socket for a path; the answer becomes standard output.
func httpGet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: http SOCKET PATH")
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", args[0])
		},
	}}
	answer, err := client.Get("http://magikpodd" + args[1])
	ts.Check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	ts.Check(err)
	if answer.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s: %s", args[1], answer.Status, body)
	}
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
}
