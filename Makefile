# What a person or .ci/run does with this tree. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
DESTDIR ?=
PREFIX ?= /usr
SYSCONFDIR ?= /etc
PROGRAMS := magikpodctl magikpodctl-full magikpodd magikshim magikwasm magikvmm magikagent
INSTALLED := $(CURDIR)/.cache/install
# One run of go test works on this many packages at once.
JOBS ?= 2

export CGO_ENABLED = 0

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that building and testing need (nothing when they are there)
	scripts/deps

build: ## build the programs into bin/
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ $(PROGRAMS:%=./cmd/%)

install: build ## lay everything out below DESTDIR, as the packages do
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' scripts/install

test: deps ## run every test: units, race, end to end on both Debian releases
	.ci/run

unit: ## run the tests that need nothing but Go and root
	$(GO) test -p $(JOBS) ./...

host-test: deps guests ## run the tests of PKG=./units (or others) on a disposable host, as systemd's children
	@mkdir -p .cache
	$(GO) build -o .cache/magikhost ./tests/host/magikhost
	MAGIKPOD_GUESTS=$(CURDIR)/.cache/guests $(GO) test -count=1 -p 1 -exec '$(CURDIR)/.cache/magikhost run --here --' $(TESTFLAGS) $(PKG)

vm-host-test: deps staged root-trixie ## run the tests of pods in VMs, on a Debian 13 host (RUN='^TestLife$$' for one)
	@mkdir -p .cache
	$(GO) build -o .cache/magikhost ./tests/host/magikhost
	MAGIKHOST_ROOT=trixie MAGIKHOST_INSTALL=$(INSTALLED) $(GO) test -count=1 -v -timeout 20m -ldflags '-s -w' -exec '$(CURDIR)/.cache/magikhost run --here --' -run '$(or $(RUN),.)' $(TESTFLAGS) ./runtime/microvm

race: ## run the tests of concurrent packages under the race detector (needs gcc)
	scripts/race-packages | CGO_ENABLED=1 xargs --no-run-if-empty $(GO) test -race -p $(JOBS)

lint: ## gofmt, go vet, staticcheck, go.mod
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt'ed: $$out" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

fuzz: ## run each fuzz target for FUZZTIME (default 20s)
	scripts/fuzz $(or $(FUZZTIME),20s)

man: ## write the manual pages of magikpodctl anew, from its commands and flags
	$(GO) test -count=1 ./cli -run '^TestManPages$$' -args -update

staged: ## what make install makes, in .cache/install
	@rm -rf $(INSTALLED)
	@$(MAKE) --no-print-directory install DESTDIR=$(INSTALLED) PREFIX=/usr SYSCONFDIR=/etc

e2e: deps staged guests ## end-to-end tests on the build host's own root file system
	MAGIKPOD_E2E=1 MAGIKHOST_INSTALL=$(INSTALLED) $(GO) test -count=1 -timeout 20m ./tests/e2e/...

e2e-trixie: deps staged guests root-trixie ## end-to-end tests on Debian 13
	MAGIKPOD_E2E=1 MAGIKHOST_ROOT=trixie MAGIKHOST_INSTALL=$(INSTALLED) $(GO) test -count=1 -timeout 20m ./tests/e2e/...

# tests/bench on a Debian 13 host: measure TEST (a regular expression), with its own flags.
measure = MAGIKPOD_BENCH=1 MAGIKHOST_ROOT=trixie MAGIKHOST_INSTALL=$(INSTALLED) $(GO) test -count=1 -timeout 30m -v ./tests/bench -run '$(1)' -args $(if $(WRITE),-write) $(FLAGS)

bench: deps staged guests root-trixie ## measure all targets against podman and the floor, on a Debian 13 host, in under 10 minutes; WRITE=1 writes docs/performance*
	$(GO) build -o .cache/guests/wazero github.com/tetratelabs/wazero/cmd/wazero
	$(GO) build -trimpath -ldflags='-s -w' -o .cache/guests/guest ./tests/testwasm/guest
	clang -O2 -s -static -o .cache/guests/small tests/testwasm/small/small.c
	$(call measure,.)

bench-check: deps staged guests root-trixie ## compare with the recorded ratios to the floor, as .ci/run does; WRITE=1 records them anew
	$(call measure,^TestRegression$$)

bench-timeline: deps staged root-trixie ## print where the time of one start goes, by the log of PID 1
	$(call measure,^TestTimeline$$)

bench-compare: deps staged guests root-trixie ## measure this tree against the commit BEFORE (default main), rounds alternating; FLAGS='-pairs 40 -vms'
	scripts/bench-compare '$(or $(BEFORE),main)' $(FLAGS)

demo-microvm: deps root-trixie ## show a pod in a VM, on a disposable Debian 13 host
	MAGIKHOST_ROOT=trixie scripts/demo microvm

demo: deps ## show it all, on the build host or on a disposable host
	scripts/demo

demo-wasm: deps ## the same of WebAssembly pods
	scripts/demo wasm

shell: deps staged ## open a shell on a disposable host with magikpod installed
	$(GO) run ./tests/host/magikhost shell --install $(INSTALLED)

test-vm: deps staged guests ## tests in a VM of QEMU, which has every feature; RUN=REGEXP or LABEL=NAME choose scripts
	MAGIKPOD_LABEL='$(LABEL)' scripts/test-vm $(if $(RUN),-run '$(RUN)')

shell-vm: deps staged ## open a shell in a VM of QEMU with magikpod installed
	$(GO) run ./tests/vm/magikvm shell --install $(INSTALLED)

guests: deps ## build the WebAssembly modules that tests run, for hosts without compilers
	@$(GO) run ./tests/testwasm/build .cache/guests

root-trixie: deps ## build the Debian 13 root for disposable hosts (cached)
	$(GO) run ./tests/host/magikhost root trixie

clean: ## remove what the other targets have made
	rm -rf bin .cache

.PHONY: help deps build install guests test unit host-test vm-host-test race lint fuzz man staged e2e e2e-trixie bench bench-check bench-compare bench-timeline demo demo-wasm demo-microvm test-vm shell shell-vm root-trixie clean
