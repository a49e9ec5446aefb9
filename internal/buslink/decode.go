package buslink

import (
	"bytes"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// decodable says why godbus cannot decode the message: it would close the connection, or leave a
// call without an answer.
func decodable(message []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
	}()
	_, err = godbus.DecodeMessage(bytes.NewReader(message))
	return err
}
