#include "textflag.h"

// func handlers() (handler, restorer uintptr)
TEXT ·handlers(SB),NOSPLIT,$0-16
	MOVD $onSignal<>(SB), R0
	MOVD R0, handler+0(FP)
	MOVD ZR, restorer+8(FP) // the kernel's own
	RET

// onSignal is called by the kernel, with a signal in R0, on the thread's stack for signals. Whatever Go was doing there stands still, so it uses nothing of Go's but
// sink. The kernel gives all registers back.
TEXT onSignal<>(SB),NOSPLIT|NOFRAME,$0
	SUB $16, RSP
	MOVD RSP, R1 // the lowest byte of the number comes first
	MOVD R0, (R1)
	MOVW ·sink(SB), R0
	MOVD $1, R2
	MOVD $64, R8 // write
	SVC
	ADD $16, RSP
	RET
