#include "textflag.h"

// func handlers() (handler, restorer uintptr)
TEXT ·handlers(SB),NOSPLIT,$0-16
	LEAQ onSignal<>(SB), AX
	MOVQ AX, handler+0(FP)
	LEAQ endSignal<>(SB), AX
	MOVQ AX, restorer+8(FP)
	RET

// onSignal is called by the kernel, with a signal in DI, on the thread's stack for signals. Whatever Go was doing there stands still, so it uses nothing of Go's but
// sink. The kernel gives all registers back.
TEXT onSignal<>(SB),NOSPLIT|NOFRAME,$0
	PUSHQ DI
	MOVLQSX ·sink(SB), DI
	MOVQ SP, SI // the lowest byte of the number comes first
	MOVL $1, DX
	MOVL $1, AX // write
	SYSCALL
	POPQ DI
	RET

// endSignal is what onSignal returns to.
TEXT endSignal<>(SB),NOSPLIT|NOFRAME,$0
	MOVL $15, AX // rt_sigreturn
	SYSCALL
	INT $3 // it does not return
