// preview1 tries what WASI preview 1 offers, from C: `preview1 DIRECTORY` works in a directory that it may write to, says "ok NAME" or "FAILED NAME: WHY" for each thing, and
// exits with the number of failures.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int failures;

static const char *why(void) { return errno ? strerror(errno) : "it is not so"; }

#define CHECK(cond) do { errno = 0; if (!(cond)) { printf("FAILED %s, line %d: %s: %s\n", name, __LINE__, #cond, why()); failures++; return; } } while (0)

static void arguments(const char *name, int argc, char **argv) {
	CHECK(argc == 4 && !strcmp(argv[2], "two words") && !strcmp(argv[3], "\xc3\xbc"));
}

static void environment(const char *name) {
	CHECK(getenv("COLOUR") && !strcmp(getenv("COLOUR"), "blue = green"));
	CHECK(!getenv("NO_SUCH_VARIABLE"));
}

static void clocks(const char *name) {
	struct timespec real, before, after, resolution, pause = {0, 50 * 1000 * 1000};
	CHECK(!clock_gettime(CLOCK_REALTIME, &real) && real.tv_sec > 1700000000);
	CHECK(!clock_getres(CLOCK_MONOTONIC, &resolution));
	CHECK(!clock_gettime(CLOCK_MONOTONIC, &before));
	CHECK(!nanosleep(&pause, NULL));
	CHECK(!clock_gettime(CLOCK_MONOTONIC, &after));
	int64_t took = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
	CHECK(took >= 50 * 1000 * 1000 && took < 30LL * 1000 * 1000 * 1000);
	CHECK(!sched_yield());
}

static void randomness(const char *name) {
	unsigned char a[64], b[64];
	CHECK(!getentropy(a, sizeof a) && !getentropy(b, sizeof b));
	CHECK(memcmp(a, b, sizeof a));
}

static void files(const char *name) {
	char buf[16];
	struct stat st;
	int fd = open("f", O_RDWR | O_CREAT | O_EXCL, 0644);
	CHECK(fd >= 0);
	CHECK(open("f", O_RDWR | O_CREAT | O_EXCL, 0644) < 0 && errno == EEXIST);
	CHECK(write(fd, "0123456789", 10) == 10);
	CHECK(lseek(fd, 0, SEEK_CUR) == 10);
	CHECK(lseek(fd, -4, SEEK_END) == 6 && read(fd, buf, 16) == 4 && !memcmp(buf, "6789", 4));
	CHECK(read(fd, buf, 16) == 0);
	CHECK(pread(fd, buf, 3, 2) == 3 && !memcmp(buf, "234", 3));
	CHECK(pwrite(fd, "xy", 2, 4) == 2 && lseek(fd, 0, SEEK_CUR) == 10);
	CHECK(lseek(fd, -1, SEEK_SET) < 0 && errno == EINVAL);
	CHECK(!ftruncate(fd, 6) && !fstat(fd, &st) && st.st_size == 6 && S_ISREG(st.st_mode));
	CHECK(!fsync(fd) && !fdatasync(fd) && !close(fd));
	CHECK(close(fd) < 0 && errno == EBADF);
	fd = open("f", O_WRONLY | O_APPEND);
	CHECK(fd >= 0 && write(fd, "end", 3) == 3 && !close(fd));
	fd = open("f", O_RDONLY);
	CHECK(fd >= 0 && read(fd, buf, 16) == 9 && !memcmp(buf, "0123xyend", 9));
	CHECK(write(fd, "x", 1) < 0 && errno == EBADF);
	CHECK(!close(fd));
	fd = open("f", O_WRONLY | O_TRUNC);
	CHECK(fd >= 0 && !fstat(fd, &st) && st.st_size == 0 && !close(fd));
	struct timespec times[2] = {{1000000000, 0}, {1100000000, 0}};
	CHECK(!utimensat(AT_FDCWD, "f", times, 0) && !stat("f", &st) && st.st_mtim.tv_sec == 1100000000);
	CHECK(open("none", O_RDONLY) < 0 && errno == ENOENT);
	CHECK(!rename("f", "g") && stat("f", &st) < 0 && !stat("g", &st));
	CHECK(!unlink("g") && unlink("g") < 0 && errno == ENOENT);
}

static void directories(const char *name) {
	struct stat st;
	CHECK(!mkdir("d", 0755) && mkdir("d", 0755) < 0 && errno == EEXIST);
	CHECK(!stat("d", &st) && S_ISDIR(st.st_mode));
	for (int i = 0; i < 100; i++) { // more than one buffer of directory entries
		char path[64];
		snprintf(path, sizeof path, "d/a-file-with-a-long-name-%03d", i);
		int fd = open(path, O_WRONLY | O_CREAT, 0644);
		CHECK(fd >= 0 && !close(fd));
	}
	CHECK(rmdir("d") < 0 && errno == ENOTEMPTY);
	CHECK(unlink("d") < 0);
	int n = 0;
	DIR *dir = opendir("d");
	CHECK(dir);
	for (struct dirent *e; (e = readdir(dir));)
		if (strncmp(e->d_name, "a-file", 6) == 0) n++;
	CHECK(n == 100);
	rewinddir(dir);
	CHECK(readdir(dir));
	CHECK(!closedir(dir));
	for (int i = 0; i < 100; i++) {
		char path[64];
		snprintf(path, sizeof path, "d/a-file-with-a-long-name-%03d", i);
		CHECK(!unlink(path));
	}
	CHECK(!rmdir("d") && opendir("d") == NULL && errno == ENOENT);
}

static void links(const char *name) {
	char buf[64];
	struct stat st;
	int fd = open("target", O_WRONLY | O_CREAT, 0644);
	CHECK(fd >= 0 && write(fd, "linked", 6) == 6 && !close(fd));
	CHECK(!symlink("target", "soft"));
	CHECK(readlink("soft", buf, sizeof buf) == 6 && !memcmp(buf, "target", 6));
	CHECK(!lstat("soft", &st) && S_ISLNK(st.st_mode) && !stat("soft", &st) && S_ISREG(st.st_mode));
	fd = open("soft", O_RDONLY);
	CHECK(fd >= 0 && read(fd, buf, sizeof buf) == 6 && !close(fd));
	CHECK(open("soft", O_RDONLY | O_NOFOLLOW) < 0 && errno == ELOOP);
	CHECK(!link("target", "hard") && !unlink("target"));
	fd = open("hard", O_RDONLY);
	CHECK(fd >= 0 && read(fd, buf, sizeof buf) == 6 && !close(fd));
	CHECK(!unlink("hard") && !unlink("soft"));
}

static void polling(const char *name) {
	struct timespec before, after;
	clock_gettime(CLOCK_MONOTONIC, &before);
	CHECK(poll(NULL, 0, 30) == 0 || errno == ENOTSUP);
	clock_gettime(CLOCK_MONOTONIC, &after);
	CHECK(after.tv_sec > before.tv_sec || after.tv_nsec >= before.tv_nsec);
}

static void standard(const char *name) {
	char c;
	CHECK(read(0, &c, 1) == 0); // a container has no standard input
	CHECK(fprintf(stderr, "to stderr\n") == 10);
}

int main(int argc, char **argv) {
	if (argc < 2 || chdir(argv[1])) {
		printf("FAILED chdir: %s\n", why());
		return 100;
	}
	arguments("arguments", argc, argv);
	struct { const char *name; void (*test)(const char *); } tests[] = {
		{"environment", environment}, {"clocks", clocks}, {"randomness", randomness}, {"files", files}, {"directories", directories},
		{"links", links}, {"polling", polling}, {"standard", standard},
	};
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
		int before = failures;
		tests[i].test(tests[i].name);
		if (failures == before) printf("ok %s\n", tests[i].name);
	}
	return failures;
}
