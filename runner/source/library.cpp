#include "library.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "elf_image.hpp"
#include "error.hpp"

extern char** environ;  // NOLINT: not in every libc's headers

namespace packager {
namespace {

constexpr unsigned close_on_exec = 1, no_exec = 8, exec = 16;  // flags of memfd_create: not in every libc's headers

// A file that the linker opens as `path`. It stays open: the linker takes two files of one name for one library.
struct Copy {
    int descriptor = -1;
    std::string path;
    std::string folder;  // of a temporary file, which is deleted with it
};

void remove(const Copy& copy) {
    if (copy.folder.empty()) return;
    unlink(copy.path.c_str());
    rmdir(copy.folder.c_str());
}

bool write_at(int descriptor, Span bytes, std::uint64_t offset) {
    for (std::size_t done = 0; done < bytes.size;) {
        const ssize_t count =
            pwrite(descriptor, bytes.data + done, bytes.size - done, static_cast<off_t>(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        done += static_cast<std::size_t>(count);
    }
    return true;
}

// What the linker reads or writes; the rest of the file stays empty.
bool write_parts(int descriptor, Span library, const ElfImage& image) {
    if (!write_at(descriptor, {library.data, image.tables_end}, 0)) return false;
    return std::all_of(image.segments.begin(), image.segments.end(), [&](const Elf64_Phdr& segment) {
        const Span content{library.data + segment.p_offset, segment.p_filesz};
        return (segment.p_flags & PF_W) == 0 || write_at(descriptor, content, segment.p_offset);
    });
}

// Waits until what the linker will follow was compared.
void require_copied(const ElfImage& image, LibraryCheck& check) {
    check.require(0, image.tables_end);
    for (const Elf64_Phdr& segment : image.segments) {
        if ((segment.p_flags & PF_W) != 0) check.require(segment.p_offset, segment.p_filesz);
    }
}

// Takes away constructors and destructors, and the permission to run code, which a folder or a host may refuse: no code
// of a copy runs. The destructors never run, as a process that ends needs none of them. Nor are other libraries looked
// for where the copy is.
bool disarm(int descriptor, Span library, const ElfImage& image) {
    std::vector<Elf64_Dyn> dynamic = image.dynamic;
    for (Elf64_Dyn& entry : dynamic) {
        for (const Elf64_Sxword tag : {DT_INIT, DT_FINI, DT_RPATH, DT_RUNPATH}) {
            if (entry.d_tag == tag) entry.d_tag = DT_DEBUG;  // means nothing in a library
        }
        if (entry.d_tag == DT_INIT_ARRAYSZ || entry.d_tag == DT_FINI_ARRAYSZ)
            entry.d_un.d_val = 0;  // NOLINT(cppcoreguidelines-pro-type-union-access): ELF's own
    }
    const Span bytes{reinterpret_cast<const std::byte*>(dynamic.data()), dynamic.size() * sizeof(Elf64_Dyn)};
    if (!write_at(descriptor, bytes, image.dynamic_offset)) return false;
    for (std::uint64_t index = 0; index < image.segment_count; ++index) {
        const std::uint64_t offset = image.segments_offset + index * sizeof(Elf64_Phdr);
        Elf64_Phdr segment;
        std::memcpy(&segment, library.data + offset, sizeof(segment));
        segment.p_flags &= ~static_cast<Elf64_Word>(PF_X);
        if (!write_at(descriptor, {reinterpret_cast<const std::byte*>(&segment), sizeof(segment)}, offset))
            return false;
    }
    return true;
}

// Fills a new file: sparsely for an overlay, otherwise with everything.
bool fill(int descriptor, Span library, const ElfImage* image) {
    if (ftruncate(descriptor, static_cast<off_t>(library.size)) != 0) return false;
    if (image == nullptr) return write_at(descriptor, library, 0);
    return write_parts(descriptor, library, *image) && disarm(descriptor, library, *image);
}

Copy make_memory_file(Span library, const ElfImage* image) {
    int descriptor = memfd_create("onnxruntime", close_on_exec | (image != nullptr ? no_exec : exec));
    if (descriptor < 0) descriptor = memfd_create("onnxruntime", close_on_exec);  // before Linux 6.3
    if (descriptor < 0) return {};
    const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
    if (access(path.c_str(), R_OK) != 0 || !fill(descriptor, library, image)) {
        close(descriptor);
        return {};
    }
    return {descriptor, path, ""};
}

// In a folder that is this user's alone: a library may ask for others beside it.
Copy make_temporary_file(const std::string& parent, Span library, const ElfImage* image) {
    std::string folder = parent + "/onnxruntime-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) return {};
    Copy copy{-1, folder + "/libonnxruntime.so", folder};
    copy.descriptor = open(copy.path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    if (copy.descriptor >= 0 && fill(copy.descriptor, library, image)) return copy;
    remove(copy);
    if (copy.descriptor >= 0) close(copy.descriptor);
    return {};
}

std::vector<std::string> list_folders() {
    std::vector<std::string> folders;
    const char* const chosen = std::getenv("TMPDIR");
    if (chosen != nullptr && *chosen == '/') folders.emplace_back(chosen);
    for (const char* const folder : {"/tmp", "/var/tmp", "/dev/shm", "/run"}) folders.emplace_back(folder);
    return folders;
}

// Opens a copy as a library; nullptr if there is no copy or the linker refuses it, which `why` then says.
void* open_copy(const Copy& copy, std::string& why) {
    if (copy.descriptor < 0) return nullptr;
    void* const handle = dlopen(copy.path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) why = dlerror();
    remove(copy);
    if (handle == nullptr) close(copy.descriptor);
    return handle;
}

void* open_any_copy(Span library, const ElfImage* image, std::string& why) {
    if (void* const handle = open_copy(make_memory_file(library, image), why)) return handle;
    for (const std::string& folder : list_folders()) {
        if (void* const handle = open_copy(make_temporary_file(folder, library, image), why)) return handle;
    }
    return nullptr;
}

std::byte* find_base(void* handle) {
    link_map* map = nullptr;
    if (dlinfo(handle, RTLD_DI_LINKMAP, static_cast<void*>(&map)) != 0) return nullptr;
    return reinterpret_cast<std::byte*>(map->l_addr);  // NOLINT(performance-no-int-to-ptr)
}

// Maps what is not written from the executable. Returns false if that is not possible.
bool overlay(const Executable& executable, const ElfImage& image, std::byte* base) {
    const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    if (executable.library_offset % page != 0) return false;
    for (const Elf64_Phdr& segment : image.segments) {
        const std::uint64_t skipped = segment.p_vaddr % page;
        if ((segment.p_flags & PF_W) != 0 || segment.p_filesz == 0) continue;
        if (segment.p_offset % page != skipped) return false;
        int protection = (segment.p_flags & PF_R) != 0 ? PROT_READ : PROT_NONE;
        if ((segment.p_flags & PF_X) != 0) protection |= PROT_EXEC;
        const auto offset = static_cast<off_t>(executable.library_offset + segment.p_offset - skipped);
        void* const wanted = base + segment.p_vaddr - skipped;
        const int flags = MAP_PRIVATE | MAP_FIXED;
        if (mmap(wanted, segment.p_filesz + skipped, protection, flags, executable.descriptor, offset) != wanted) {
            return false;
        }
    }
    return true;
}

template <typename Function>
Function* function_at(std::byte* address) {
    return reinterpret_cast<Function*>(address);
}

void call_constructors(const ElfImage& image, std::byte* base) {
    using Constructor = void(int, char**, char**);
    static char name[] = "onnxruntime";
    static char* arguments[] = {name, nullptr};  // NOLINT(misc-const-correctness)
    if (image.init != 0) function_at<Constructor>(base + image.init)(1, arguments, environ);
    for (std::uint64_t done = 0; done + sizeof(void*) <= image.init_array_size; done += sizeof(void*)) {
        std::byte* constructor = nullptr;
        std::memcpy(static_cast<void*>(&constructor), base + image.init_array + done, sizeof(constructor));
        if (constructor != nullptr) function_at<Constructor>(constructor)(1, arguments, environ);
    }
}

Error refuse(const Executable& executable, const std::string& why) {
    return backend_unavailable(executable.path, "onnxruntime: " + join_words(why),
                               "the host needs glibc 2.28 or later, libstdc++.so.6 and libgcc_s.so.1, and a writable "
                               "folder such as /tmp if it lacks /proc");
}

}  // namespace

void* load_library(const Executable& executable, LibraryCheck& check) {
    const auto image = read_elf_image(executable.library);
    std::string why = "no copy of its library can be made";
    void* handle = nullptr;
    if (image) {
        require_copied(*image, check);
        handle = open_any_copy(executable.library, &*image, why);
        std::byte* const base = handle != nullptr ? find_base(handle) : nullptr;
        check.require_all();
        if (base != nullptr && overlay(executable, *image, base)) {
            call_constructors(*image, base);
        } else {
            handle = nullptr;  // what was opened stays open, and does nothing
        }
    }
    check.require_all();
    if (handle == nullptr) handle = open_any_copy(executable.library, nullptr, why);
    void* const function = handle != nullptr ? dlsym(handle, "OrtGetApiBase") : nullptr;
    if (function == nullptr) throw refuse(executable, why);
    return function;
}

}  // namespace packager
