package shim

import (
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// number is the first number of a text.
func number(text string) int {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(fields[0])
	return n
}
