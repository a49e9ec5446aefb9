// Command hello is an HTTP server for a pod of the class pod-wasm: built for wasip1 it cannot open
// sockets, and serves on those that were opened for the ports of its container.
//
//	GOOS=wasip1 GOARCH=wasm go build -o hello.wasm ./examples/wasm
//	magikpodctl image load --tag localhost/hello:1 hello.wasm
//	magikpodctl run -f examples/wasm.yaml
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	l, err := listener("http")
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from WebAssembly in %s\n", os.Getenv("HOSTNAME"))
		log.Print("served ", r.URL.Path)
	})
	log.Print("serving")
	log.Fatal(http.Serve(l, nil))
}

// listener is the socket of a container port, by the port's name: MAGIKPOD_LISTEN_FDS is
// NAME=DESCRIPTOR,NAME=DESCRIPTOR.
func listener(port string) (net.Listener, error) {
	for socket := range strings.SplitSeq(os.Getenv("MAGIKPOD_LISTEN_FDS"), ",") {
		name, number, _ := strings.Cut(socket, "=")
		fd, err := strconv.Atoi(number)
		if err != nil || name != port {
			continue
		}
		// A module has one thread: an Accept that blocks would hold up all goroutines.
		if err := syscall.SetNonblock(fd, true); err != nil {
			return nil, err
		}
		return net.FileListener(os.NewFile(uintptr(fd), name))
	}
	return nil, fmt.Errorf("the container has no port %s", port)
}
