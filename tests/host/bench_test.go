package host_test

import (
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

func BenchmarkBoot(b *testing.B) {
	if err := host.Check(); err != nil {
		b.Skip(err)
	}
	opts, err := host.OptionsFromEnv()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		h, err := host.Boot(b.Context(), opts)
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	h := host.ForTest(b)
	for b.Loop() {
		if _, err := h.Output(b.Context(), "true"); err != nil {
			b.Fatal(err)
		}
	}
}
