package engine

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
)

const unixKILL = syscall.SIGKILL

// stopSignal is the container's lifecycle.stopSignal, else the image's, else SIGTERM.
func stopSignal(c *corev1.Container, image runtime.ImageConfig) syscall.Signal {
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if sig := parseSignal(string(*c.Lifecycle.StopSignal)); sig != 0 {
			return sig
		}
	}
	if sig := parseSignal(image.StopSignal); sig != 0 {
		return sig
	}
	return unix.SIGTERM
}

// parseSignal reads SIGTERM, TERM, RTMIN+3 or 15; 0 when it is none.
func parseSignal(text string) syscall.Signal {
	text = strings.ToUpper(strings.TrimSpace(text))
	if number, err := strconv.Atoi(text); err == nil {
		if number < 1 || number > 64 {
			return 0
		}
		return syscall.Signal(number)
	}
	name := "SIG" + strings.TrimPrefix(text, "SIG")
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				return 0
			}
		}
		if number := base + offset; number >= 34 && number <= 64 {
			return syscall.Signal(number)
		}
		return 0
	}
	if other, ok := signalAliases[name]; ok {
		name = other
	}
	return unix.SignalNum(name)
}

// signalAliases are second names of signals (signal(7)), which manifests and images may use as well.
var signalAliases = map[string]string{"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}
