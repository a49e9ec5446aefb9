package wire

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxAnswer bounds the answer to CONNECT, in bytes: "OK " and a port.
const maxAnswer = 32

// Connect asks a VMM, at the other end of a connection to its unix socket (hybrid vsock), for a
// port of the guest: "CONNECT PORT", answered by "OK N". One byte is read at a time: what follows
// the answer's line is the guest's.
func Connect(vmm io.ReadWriter, port uint32) error {
	if _, err := fmt.Fprintf(vmm, "CONNECT %d\n", port); err != nil {
		return err
	}
	answer, one := "", make([]byte, 1)
	for len(answer) < maxAnswer {
		if _, err := vmm.Read(one); err != nil {
			return err
		}
		if one[0] == '\n' {
			if !strings.HasPrefix(answer, "OK ") {
				return fmt.Errorf("the VMM answered %q", answer)
			}
			return nil
		}
		answer += string(one)
	}
	return errors.New("the VMM's answer is too long")
}
