// onnxruntime's library, loaded from within the executable.
//
// The dynamic linker opens no library at an offset of a file. It gets a sparse copy in memory that has only what it
// reads or writes: headers, symbols and relocations, and the data. The copy says that there are no constructors, so
// nothing in it runs. Then code and constants are mapped over it from the executable itself, and the constructors are
// called. So 1.2 MB are copied instead of 30, and processes share the pages of the rest.
//
// This needs a library whose tables are at its start, and that has no relocation which calls its code. Otherwise, and
// where nothing can be mapped from the executable, the whole library is copied. A copy is a file in memory (memfd),
// opened through /proc; where one of them is missing, it is a temporary file that is deleted at once.
#pragma once

#include "executable.hpp"
#include "pieces.hpp"

namespace packager {

// Loads the library. The linker sees what `check` has compared, and none of the library's code, constructors included,
// runs before all of it was compared. Returns the address of OrtGetApiBase. Throws Error (backend-unavailable) and what
// `check` throws.
void* load_library(const Executable& executable, LibraryCheck& check);

}  // namespace packager
