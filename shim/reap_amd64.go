package shim

import "golang.org/x/sys/unix"

const (
	reapMachine      = 62 // EM_X86_64
	reapArchitecture = unix.AUDIT_ARCH_X86_64
)

// reapCode is what [reapProgram] does.
var reapCode = [][]byte{
	{0xb8, 0x9d, 0x00, 0x00, 0x00}, // mov $157, %eax: prctl
	{0xbf, 0x04, 0x00, 0x00, 0x00}, // mov $4, %edi: PR_SET_DUMPABLE
	{0x31, 0xf6},                   // xor %esi, %esi
	{0x0f, 0x05},                   // syscall
	{0xb8, 0x9d, 0x00, 0x00, 0x00}, // mov $157, %eax: prctl
	{0xbf, 0x0f, 0x00, 0x00, 0x00}, // mov $15, %edi: PR_SET_NAME
	{0xbe, 0x78, 0x00, 0x40, 0x00}, // mov $reapName, %esi
	{0x0f, 0x05},                   // syscall
	{0x31, 0xff},                   // xor %edi, %edi: no descriptors
	{0x31, 0xf6},                   // xor %esi, %esi
	{0x31, 0xd2},                   // xor %edx, %edx: no timeout
	{0x45, 0x31, 0xd2},             // xor %r10d, %r10d: no signal mask
	{0xb8, 0x0f, 0x01, 0x00, 0x00}, // mov $271, %eax: ppoll
	{0x0f, 0x05},                   // syscall
	{0xeb, 0xf7},                   // jmp to the last mov
}
