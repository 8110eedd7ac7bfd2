/* A function's name by its address, out of the running program's symbol table: kernels are static functions
 * and template instances, which dladdr does not see. The mangled name is the one that nvcc gives a kernel of
 * external linkage. */
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>

#include "tests/gpu/shim/shim.h"

namespace {

struct symbol {
    uintptr_t end;
    std::string mangled, plain;
};

int find_base(struct dl_phdr_info *info, size_t, void *arg) {
    *(uintptr_t *)arg = info->dlpi_addr;
    return 1;
}

std::map<uintptr_t, symbol> read_symbols(void) {
    std::map<uintptr_t, symbol> out;
    uintptr_t base = 0;
    dl_iterate_phdr(find_base, &base);
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0) return out;
    void *map =
        fstat(fd, &st) == 0 ? mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    close(fd);
    if (map == MAP_FAILED) return out;
    const char *file = (const char *)map;
    const ElfW(Ehdr) *head = (const ElfW(Ehdr) *)file;
    const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(file + head->e_shoff);
    for (int i = 0; i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const ElfW(Sym) *symbols = (const ElfW(Sym) *)(file + sections[i].sh_offset);
        const char *strings = file + sections[sections[i].sh_link].sh_offset;
        for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++) {
            if ((symbols[j].st_info & 0xf) != STT_FUNC || symbols[j].st_value == 0) continue;
            uintptr_t at = base + symbols[j].st_value;
            out[at] = {at + symbols[j].st_size, strings + symbols[j].st_name, ""};
        }
    }
    munmap(map, (size_t)st.st_size);
    return out;
}

} // namespace

extern "C" const char *kx_shim_name(const void *function, bool mangled) {
    static std::mutex lock;
    static std::map<uintptr_t, symbol> *symbols;
    std::lock_guard<std::mutex> hold(lock);
    if (!symbols) symbols = new std::map<uintptr_t, symbol>(read_symbols());
    auto i = symbols->upper_bound((uintptr_t)function);
    if (i == symbols->begin()) return "";
    --i;
    if ((uintptr_t)function >= i->second.end) return "";
    symbol &s = i->second;
    if (s.plain.empty()) {
        int status;
        char *text = abi::__cxa_demangle(s.mangled.c_str(), nullptr, nullptr, &status);
        s.plain = text ? text : s.mangled;
        free(text);
    }
    return mangled ? s.mangled.c_str() : s.plain.c_str();
}
