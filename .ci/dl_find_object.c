/* Debian's libgcc_eh.a finds a function's unwind table by glibc's _dl_find_object. musl has only dl_iterate_phdr: this
   implements the one by the other. */
#define _GNU_SOURCE
#include <link.h>
#include <pthread.h>
#include <stdint.h>

/* libgcc_eh refers to these as weak symbols, and assumes threads as soon as one of them exists. A static link does not
   resolve weak symbols from an archive, and the unwinder would call address 0. So refer to them here. */
const void *const libgcc_eh_needs[] __attribute__((used)) = {
    pthread_once,        pthread_key_create, pthread_getspecific,
    pthread_setspecific, pthread_mutex_lock, pthread_mutex_unlock,
};

/* glibc's struct dl_find_object on 64-bit machines */
struct object {
  unsigned long long flags;
  void *start, *end;
  struct link_map *map;
  void *eh_frame;
  unsigned long long reserved[7];
};

struct search {
  uintptr_t pc;
  struct object *out;
};

static int look(struct dl_phdr_info *info, size_t size, void *arg) {
  struct search *search = arg;
  const ElfW(Phdr) *table = 0;
  uintptr_t start = 0, end = 0;
  (void)size;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *part = &info->dlpi_phdr[i];
    uintptr_t address = info->dlpi_addr + part->p_vaddr;
    if (part->p_type == PT_LOAD && search->pc >= address && search->pc < address + part->p_memsz) {
      start = address;
      end = address + part->p_memsz;
    } else if (part->p_type == PT_GNU_EH_FRAME) {
      table = part;
    }
  }
  if (!start || !table)
    return 0;
  *search->out = (struct object){
      .start = (void *)start,
      .end = (void *)end,
      .eh_frame = (void *)(info->dlpi_addr + table->p_vaddr),
  };
  return 1;
}

int _dl_find_object(void *pc, struct object *out) {
  struct search search = {(uintptr_t)pc, out};
  return dl_iterate_phdr(look, &search) ? 0 : -1;
}
