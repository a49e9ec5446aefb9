package guestimage

import (
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// libraryDirs are where Debian's and others' loaders look, after what a program says itself.
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

// Libraries returns the shared libraries and the loader that a program needs: where the loader
// looks for each, and the file on this host. A static program needs none.
func Libraries(program string) (map[string]string, error) {
	libraries := map[string]string{}
	// A program in a root file system that is not this host's takes its libraries from there.
	root := ""
	if i := rootOf(program); i != "" {
		root = i
	}
	var add func(path string) error
	add = func(path string) error {
		f, err := elf.Open(path)
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", path, err)
		}
		defer f.Close()
		for _, segment := range f.Progs {
			if segment.Type == elf.PT_INTERP {
				name := make([]byte, segment.Filesz)
				if _, err := segment.ReadAt(name, 0); err != nil {
					return fmt.Errorf("cannot read %s: %w", path, err)
				}
				loader := string(name[:max(len(name)-1, 0)])
				file, err := filepath.EvalSymlinks(filepath.Join(root, loader))
				if err != nil {
					return err
				}
				libraries[loader] = file
			}
		}
		needed, err := f.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("cannot read the libraries of %s: %w", path, err)
		}
		for _, name := range needed {
			if _, there := libraryOf(libraries, name); there {
				continue
			}
			where, file, err := findLibrary(root, name, f.Class, f.Machine)
			if err != nil {
				return fmt.Errorf("%s needs %s: %w", path, name, err)
			}
			libraries[where] = file
			if err := add(file); err != nil {
				return err
			}
		}
		return nil
	}
	return libraries, add(program)
}

// rootOf returns the root file system that has a program in usr/bin or bin; empty: this host's.
func rootOf(program string) string {
	for dir := filepath.Dir(program); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if base := filepath.Base(dir); base == "usr" || base == "bin" || base == "sbin" || base == "local" || base == "libexec" {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "usr/lib")); err == nil {
			return dir
		}
		return ""
	}
	return ""
}

func libraryOf(libraries map[string]string, name string) (string, bool) {
	for where := range libraries {
		if filepath.Base(where) == name {
			return where, true
		}
	}
	return "", false
}

// findLibrary looks for a library of the right architecture.
func findLibrary(root, name string, class elf.Class, machine elf.Machine) (where, file string, err error) {
	for _, dir := range libraryDirs {
		path, err := filepath.EvalSymlinks(filepath.Join(root, dir, name))
		if err != nil {
			continue
		}
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		fits := f.Class == class && f.Machine == machine
		f.Close()
		if fits {
			return filepath.Join(dir, name), path, nil
		}
	}
	return "", "", fmt.Errorf("it is in none of %v", libraryDirs)
}

type library struct{ name, path string }

// sorted: the same image has the same bytes.
func sorted(libraries map[string]string) []library {
	var list []library
	for _, name := range slices.Sorted(maps.Keys(libraries)) {
		list = append(list, library{name, libraries[name]})
	}
	return list
}
