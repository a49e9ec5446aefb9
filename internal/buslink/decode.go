package buslink

import (
	"bytes"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// decodable says whether godbus can decode the message: else it would close the connection.
func decodable(message []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
	}()
	_, err = godbus.DecodeMessage(bytes.NewReader(message))
	if _, invalid := errors.AsType[godbus.InvalidMessageError](err); invalid {
		return nil // godbus ignores it by itself
	}
	return err
}

// emptied is the call with a body that is wrong for every method, so that it is answered like any call with wrong arguments; nil: it is no call, and nobody waits for
// an answer.
func emptied(message []byte) []byte {
	order := byteOrder(message)
	end := fixedHeader + uint64(order.Uint32(message[12:]))
	if godbus.Type(message[1]) != godbus.TypeMethodCall || end > uint64(len(message)) {
		return nil
	}
	// The header is an array of structures (yv) of a code and a value (D-Bus specification, "Header Fields"), each aligned to 8 bytes.
	out := bytes.Clone(message[:fixedHeader])
	fields := message[fixedHeader:end]
	for len(fields) >= 8 {
		length := 8 // code, signature of the value, and at least a number
		switch fields[2] {
		case 's', 'o':
			length += int(order.Uint32(fields[4:])) + 1
		case 'g':
			length = 4 + 1 + int(fields[4]) + 1
		case 'u':
		default:
			return nil
		}
		length = (length + 7) / 8 * 8
		switch godbus.HeaderField(fields[0]) {
		case godbus.FieldSignature, godbus.FieldUnixFDs:
		default:
			out = append(out, fields[:min(length, len(fields))]...)
			out = append(out, make([]byte, (8-len(out)%8)%8)...)
		}
		fields = fields[min(length, len(fields)):]
	}
	out = append(out, byte(godbus.FieldSignature), 1, 'g', 0, 1, 'y', 0)
	order.PutUint32(out[4:], 1)
	order.PutUint32(out[12:], uint32(len(out)-fixedHeader))
	return append(out, 0, 0) // the padding, and a body of one byte
}
