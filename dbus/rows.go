package dbus

import (
	"encoding/binary"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/pod"
)

// encodePods makes the answer of DescribePods, a [contract.PodRow] for each pod of a namespace ("": of all),
// with what summaryProperties has: all of them in the time that godbus needs for thirty.
func encodePods(list []pod.Summary, namespace string) buslink.Encoded {
	e := encoder{make([]byte, 0, 700*len(list))}
	e.array(8, func() {
		for i := range list {
			p := &list[i]
			if namespace != "" && p.Namespace != namespace {
				continue
			}
			e.align(8)
			e.text(string(contract.PodPath(p.UID)))
			e.array(8, func() { e.summary(p) })
		}
	})
	return buslink.Encoded{Signature: godbus.ParseSignatureMust("a(oa{sv})"), Data: e.b}
}

func (e *encoder) summary(p *pod.Summary) {
	for _, v := range [...]struct{ name, value string }{
		{"Namespace", p.Namespace}, {"Name", p.Name}, {"UID", string(p.UID)}, {"Phase", p.Phase}, {"State", p.State}, {"RuntimeClass", p.Class}, {"Slice", p.Slice},
	} {
		e.entry(v.name, "s")
		e.text(contract.FitText(v.value))
	}
	e.entry("Ready", "b")
	e.number(map[bool]uint32{true: 1}[isReady(p)])
	for _, v := range [...]struct {
		name  string
		value int
	}{{"ReadyContainers", p.Ready}, {"TotalContainers", p.Total}, {"Restarts", p.Restarts}} {
		e.entry(v.name, "u")
		e.number(uint32(v.value))
	}
	e.entry("CreatedUSec", "t")
	e.align(8)
	e.b = binary.LittleEndian.AppendUint64(e.b, contract.USec(p.Created))
	e.entry("PodIPs", "as")
	e.array(4, func() {
		for _, ip := range p.IPs {
			e.text(busText(ip))
		}
	})
}

// encoder writes values as they are on the bus (D-Bus specification, "Marshaling").
type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) number(n uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, n)
}

func (e *encoder) text(s string) {
	e.number(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

// array writes its length in front of the elements; align is theirs.
func (e *encoder) array(align int, elements func()) {
	e.number(0)
	at := len(e.b)
	e.align(align)
	begin := len(e.b)
	elements()
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-begin))
}

// entry begins an entry of a dictionary, up to the value in the variant.
func (e *encoder) entry(name, signature string) {
	e.align(8)
	e.text(name)
	e.b = append(append(append(e.b, byte(len(signature))), signature...), 0)
}
