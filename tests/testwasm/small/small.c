// small is a program of few bytes, for what a large one would hide: its machine code is small, too. Its first argument says what it does:
//   write FILE TEXT   makes a file
//   grow MIB          allocates and touches memory, MiB by MiB; exit code 3 when there is no more
//   reserve MIB       allocates that much at once and touches none of it; exit code 3 when that cannot be
//   spin              computes for ever
//   sleep SECONDS
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int grow(int mib) {
	for (int i = 0; i < mib; i++) {
		char *p = malloc(1 << 20);
		if (!p) {
			printf("no more than %d MiB\n", i);
			return 3;
		}
		memset(p, i + 1, 1 << 20);
		if (p[i % 1024] == 0)
			return 4; // so that nothing is optimised away
	}
	printf("grew by %d MiB\n", mib);
	return 0;
}

int main(int argc, char **argv) {
	const char *verb = argc > 1 ? argv[1] : "";
	if (!strcmp(verb, "write") && argc == 4) {
		int fd = open(argv[2], O_WRONLY | O_CREAT, 0644);
		return fd < 0 || write(fd, argv[3], strlen(argv[3])) < 0;
	}
	if (!strcmp(verb, "grow") && argc == 3)
		return grow(atoi(argv[2]));
	if (!strcmp(verb, "reserve") && argc == 3) {
		char *volatile p = malloc((size_t)atoi(argv[2]) << 20);
		puts(p ? "there is room" : "no room");
		return p ? 0 : 3;
	}
	if (!strcmp(verb, "sleep") && argc == 3)
		return sleep(atoi(argv[2]));
	if (!strcmp(verb, "spin"))
		for (volatile unsigned n = 0;; n++)
			;
	fputs("usage: small write FILE TEXT | grow MIB | reserve MIB | spin | sleep SECONDS\n", stderr);
	return 2;
}
