// Package atomicfile writes files so that a reader sees the old content or the new one, never a part.
package atomicfile
