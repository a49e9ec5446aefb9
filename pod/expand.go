package pod

import "strings"

// MaxExecBytes bounds the arguments, and the environment, of one container. References to
// references could make a manifest of 1 MiB any size; the kernel takes a quarter of the stack limit
// for both together, 2 MiB as a rule.
const MaxExecBytes = 4 << 20

// Expand replaces $(NAME) in s by its value, by Kubernetes' rules for command, args and env: $$ is
// one $, so $$(NAME) is $(NAME); a name that lookup does not know and a reference that is not
// closed stay as they are. So do references when the result is longer than [MaxExecBytes]: no
// process can be started with it.
func Expand(s string, lookup func(name string) (string, bool)) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				out.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if value, ok := lookup(name); ok && out.Len()+len(value) <= MaxExecBytes {
				out.WriteString(value)
			} else {
				out.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			// Kubernetes keeps both characters, so that the second one is not looked at again.
			out.WriteString(s[i : i+2])
			i++
		}
	}
	return out.String()
}
