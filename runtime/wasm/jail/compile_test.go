//go:build linux

package jail

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// envCompiler is set in the process that compiles, which may use little of what it names.
const envCompiler = "WASM_TEST_COMPILER"

// TestCompileIsLimited has a process compile what takes more time, or memory, than it may use.
func TestCompileIsLimited(t *testing.T) {
	if little := os.Getenv(envCompiler); little != "" {
		if little == "time" {
			compilerTime = -16 * time.Second // 1 s of the module of 600 kB
		} else {
			compilerMemory = 64 << 20
		}
		os.Exit(Compile(os.Getenv("DIR"), filepath.Join(os.Getenv("DIR"), "module.wasm")))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "module.wasm"), testwasm.Blocks(200_000), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for little, want := range map[string]string{"time": "compiling it takes more than 1 s of CPU time\n", "memory": "fatal error: "} {
		cmd := exec.Command(program, "-test.run=^TestCompileIsLimited$")
		cmd.Env = []string{envCompiler + "=" + little, "DIR=" + dir}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		nice, score := 0, ""
		for range 100 {
			time.Sleep(5 * time.Millisecond)
			if nice, _ = unix.Getpriority(unix.PRIO_PROCESS, cmd.Process.Pid); nice == 20-compilerNice { // getpriority(2): 20 minus the nice value
				break
			}
		}
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid))
		score = strings.TrimSpace(string(data))
		err := cmd.Wait()
		if err == nil || !strings.Contains(stderr.String(), want) {
			t.Errorf("little %s: %v, %.300q", little, err, stderr.String())
		}
		kind, ok := CompileKind(cmd.ProcessState.ExitCode())
		if little == "time" && (kind != errkind.Exhausted || cmd.ProcessState.ExitCode() != shim.ExitTempFail) || little == "memory" && ok {
			t.Errorf("little %s: exit code %d", little, cmd.ProcessState.ExitCode())
		}
		if little == "time" && (nice != 20-compilerNice || score != "1000") {
			t.Errorf("nice value %d, badness %s", 20-nice, score)
		}
	}
}
