#include "elf_image.hpp"

#include <algorithm>
#include <cstring>

namespace packager {
namespace {

constexpr std::size_t max_segments = 64, max_dynamic = 1000;
#ifdef __aarch64__
constexpr std::uint32_t machine = EM_AARCH64, indirect = R_AARCH64_IRELATIVE;
#else
constexpr std::uint32_t machine = EM_X86_64, indirect = R_X86_64_IRELATIVE;
#endif

template <typename Record>
bool read(Span library, std::uint64_t offset, Record& record) {
    if (offset > library.size || sizeof(Record) > library.size - offset) return false;
    std::memcpy(&record, library.data + offset, sizeof(Record));
    return true;
}

bool is_inside(Span library, std::uint64_t offset, std::uint64_t size) {
    return offset <= library.size && size <= library.size - offset;
}

std::uint64_t find(const ElfImage& image, Elf64_Sxword tag) {
    for (const Elf64_Dyn& entry : image.dynamic) {
        if (entry.d_tag == tag) return entry.d_un.d_val;  // NOLINT(cppcoreguidelines-pro-type-union-access): ELF's own
    }
    return 0;
}

bool has(const ElfImage& image, Elf64_Sxword tag) {
    return std::any_of(image.dynamic.begin(), image.dynamic.end(), [tag](auto& entry) { return entry.d_tag == tag; });
}

bool read_segments(Span library, ElfImage& image, Elf64_Phdr& dynamic) {
    Elf64_Ehdr header;
    if (!read(library, 0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return false;
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_type != ET_DYN ||
        header.e_machine != machine || header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > max_segments) {
        return false;
    }
    image.segments_offset = header.e_phoff;
    image.segment_count = header.e_phnum;
    bool has_dynamic = false;
    for (std::uint64_t index = 0; index < header.e_phnum; ++index) {
        Elf64_Phdr segment;
        if (!read(library, header.e_phoff + index * sizeof(segment), segment)) return false;
        if (segment.p_type == PT_LOAD) image.segments.push_back(segment);
        if (segment.p_type == PT_DYNAMIC) {
            dynamic = segment;
            has_dynamic = true;
        }
    }
    return has_dynamic && std::all_of(image.segments.begin(), image.segments.end(), [library](const Elf64_Phdr& load) {
               return is_inside(library, load.p_offset, load.p_filesz) && load.p_memsz >= load.p_filesz;
           });
}

// The dynamic section must be in a segment that is copied, because it is written.
bool read_dynamic(Span library, ElfImage& image, const Elf64_Phdr& dynamic) {
    const bool is_writable = std::any_of(image.segments.begin(), image.segments.end(), [&](const Elf64_Phdr& load) {
        return (load.p_flags & PF_W) != 0 && dynamic.p_offset >= load.p_offset &&
               dynamic.p_offset + dynamic.p_filesz <= load.p_offset + load.p_filesz;
    });
    image.dynamic_offset = dynamic.p_offset;
    if (!is_writable || !is_inside(library, dynamic.p_offset, dynamic.p_filesz)) return false;
    for (std::uint64_t offset = 0; offset + sizeof(Elf64_Dyn) <= dynamic.p_filesz; offset += sizeof(Elf64_Dyn)) {
        Elf64_Dyn entry;
        if (!read(library, dynamic.p_offset + offset, entry) || image.dynamic.size() > max_dynamic) return false;
        if (entry.d_tag == DT_NULL) break;
        image.dynamic.push_back(entry);
    }
    image.init = find(image, DT_INIT);
    image.init_array = find(image, DT_INIT_ARRAY);
    image.init_array_size = find(image, DT_INIT_ARRAYSZ);
    return !has(image, DT_TEXTREL) && !has(image, DT_REL) && (find(image, DT_FLAGS) & DF_TEXTREL) == 0;
}

// Whether all that the linker reads is at the start of the file, where addresses are offsets.
bool find_tables(Span library, ElfImage& image) {
    const std::uint64_t relocations_end = find(image, DT_RELA) + find(image, DT_RELASZ);
    const std::uint64_t plt_end = find(image, DT_JMPREL) + find(image, DT_PLTRELSZ);
    const std::uint64_t strings_end = find(image, DT_STRTAB) + find(image, DT_STRSZ);
    const std::uint64_t segments_end = image.segments_offset + image.segment_count * sizeof(Elf64_Phdr);
    image.tables_end = std::max({segments_end, relocations_end, plt_end, strings_end});
    if (image.segments.empty()) return false;
    const Elf64_Phdr& first = image.segments.front();
    if (first.p_offset != 0 || first.p_vaddr != 0 || image.tables_end > first.p_filesz) return false;
    if (image.tables_end > library.size / 2) return false;  // then nothing is gained
    for (const Elf64_Sxword tag : {DT_SYMTAB, DT_STRTAB, DT_GNU_HASH, DT_HASH, DT_VERSYM, DT_VERNEED, DT_VERDEF}) {
        if (find(image, tag) >= image.tables_end) return false;
    }
    return find(image, DT_SYMTAB) < find(image, DT_STRTAB);  // so that the symbols end before `tables_end` too
}

bool calls_code(Span library, std::uint64_t offset, std::uint64_t size) {
    for (std::uint64_t done = 0; done + sizeof(Elf64_Rela) <= size; done += sizeof(Elf64_Rela)) {
        Elf64_Rela relocation;
        if (!read(library, offset + done, relocation) || ELF64_R_TYPE(relocation.r_info) == indirect) return true;
    }
    return false;
}

bool has_indirect_symbols(Span library, const ElfImage& image) {
    const std::uint64_t end = find(image, DT_STRTAB);
    for (std::uint64_t offset = find(image, DT_SYMTAB); offset + sizeof(Elf64_Sym) <= end;
         offset += sizeof(Elf64_Sym)) {
        Elf64_Sym symbol;
        if (!read(library, offset, symbol) || ELF64_ST_TYPE(symbol.st_info) == STT_GNU_IFUNC) return true;
    }
    return false;
}

}  // namespace

std::optional<ElfImage> read_elf_image(Span library) {
    ElfImage image;
    Elf64_Phdr dynamic{};
    if (!read_segments(library, image, dynamic) || !read_dynamic(library, image, dynamic)) return std::nullopt;
    if (!find_tables(library, image) || has_indirect_symbols(library, image)) return std::nullopt;
    if (calls_code(library, find(image, DT_RELA), find(image, DT_RELASZ)) ||
        calls_code(library, find(image, DT_JMPREL), find(image, DT_PLTRELSZ))) {
        return std::nullopt;
    }
    return image;
}

}  // namespace packager
