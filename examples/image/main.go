// Command web is all that is in the example image: one static program that does what the containers
// of examples/web.yaml need, so that the image needs no registry and no distribution.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: web serve ADDRESS DIRECTORY   serve files over HTTP until SIGTERM; /healthz answers ok
       web fetch URL [EVERY]         print what URL answers, once or every EVERY (1s)
       web write FILE TEXT           write a file
       web cat FILE...               print files
       web sleep DURATION            sleep (1s, 5m) or until SIGTERM
       web env                       print the environment
`

var errUsage = errors.New("wrong arguments")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	switch err := run(ctx, os.Args[1:]); {
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	switch {
	case verb == "serve" && len(args) == 2:
		return serve(ctx, args[0], args[1])
	case verb == "fetch" && (len(args) == 1 || len(args) == 2):
		return fetch(ctx, args)
	case verb == "write" && len(args) == 2:
		if err := os.MkdirAll(filepath.Dir(args[0]), 0o755); err != nil {
			return err
		}
		return os.WriteFile(args[0], []byte(args[1]+"\n"), 0o644)
	case verb == "cat" && len(args) > 0:
		return cat(args)
	case verb == "sleep" && len(args) == 1:
		return sleep(ctx, args[0])
	case verb == "env" && len(args) == 0:
		fmt.Println(strings.Join(os.Environ(), "\n"))
		return nil
	}
	return errUsage
}

func serve(ctx context.Context, address, dir string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	server := &http.Server{Addr: address, Handler: logged(mux), ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(last)
	}()
	fmt.Println("serving", dir, "on", address)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	fmt.Println("stopped")
	return <-stopped
}

// logged prints a line for each request but those of probes.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			fmt.Println(r.Method, r.URL.Path, "from", r.RemoteAddr)
		}
		next.ServeHTTP(w, r)
	})
}

// fetch gets a URL. When it does so again and again, an error is a line on standard error and not
// the end.
func fetch(ctx context.Context, args []string) error {
	if len(args) == 1 {
		return fetchOnce(ctx, args[0])
	}
	every, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := fetchOnce(ctx, args[0]); err != nil {
			fmt.Fprintln(os.Stderr, "web:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
	return nil
}

func fetchOnce(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("cannot fetch %s: %s", url, response.Status)
	}
	fmt.Println("fetched", url+":", strings.TrimSpace(string(body)))
	return nil
}

func cat(files []string) error {
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(data); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}
