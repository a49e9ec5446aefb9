package engine

import (
	"context"
	"encoding/binary"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/magikrun/magikpod/internal/errkind"
)

// checkModules refuses functions of other modules than WASI's.
func checkModules(compiled wazero.CompiledModule) error {
	for _, f := range compiled.ImportedFunctions() {
		module, name, _ := f.Import()
		if module != wasi_snapshot_preview1.ModuleName {
			return errkind.Errorf(errkind.Unsupported, "it imports the function %.100s of %.100s, and only %s can be imported", name, module, wasi_snapshot_preview1.ModuleName)
		}
	}
	return nil
}

// checkImports says, without compiling or running any of it, why a module could never be
// instantiated for what it imports: a module with the same imports and nothing else is. What is no
// module, the compiler refuses.
func checkImports(ctx context.Context, module []byte) error {
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer r.Close(ctx)
	compiled, err := r.CompileModule(ctx, importsOf(module))
	if err != nil {
		return nil
	}
	if err := checkModules(compiled); err != nil {
		return err
	}
	if err := instantiateWASI(ctx, r, &poller{sockets: newSockets(Config{})}); err != nil {
		return errkind.Errorf(errkind.Internal, "cannot set up WASI: %w", err)
	}
	if _, err := r.InstantiateModule(ctx, compiled, wazero.NewModuleConfig()); err != nil {
		return errkind.Errorf(errkind.Unsupported, "it imports what there is not: %.300s", err.Error())
	}
	return nil
}

// importsOf is a module with the types and imports of another one (WebAssembly core specification
// 5.5.2: a section is its number, its size and its content; 1 and 2 are those, 0 is anything).
func importsOf(module []byte) []byte {
	const header = 8
	stub, rest := module[:header:header], module[header:]
	for len(rest) > 0 && rest[0] <= 2 {
		size, n := binary.Uvarint(rest[1:])
		if n <= 0 || size > uint64(len(rest)-1-n) {
			break
		}
		section := rest[:1+n+int(size)]
		if rest[0] != 0 {
			stub = append(stub, section...)
		}
		rest = rest[len(section):]
	}
	return stub
}
