#ifdef EMULATOR_TRACE
#include "tracer.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace emulator::tracer {
namespace {

constexpr unsigned kSeveral = ~0u;

// The thread that made an access; `phase` counts the barriers its block had passed.
struct Access {
  unsigned launch, block, phase, thread;
};

// The last access of each kind to a byte. For several unordered accesses, what they have in common.
struct Byte {
  Access write, read, atomic;
  bool is_allocated, is_written;
};

enum class Kind { kRead, kWrite, kAtomic };

// A region with one `Byte` of shadow for each of its bytes, in memory that the system zeros on
// first use.
struct Region {
  const char* begin = nullptr;
  size_t bytes = 0;
  Byte* shadow = nullptr;

  void cover(const char* address, size_t size) {
    begin = address;
    bytes = size;
    shadow = static_cast<Byte*>(mmap(nullptr, size * sizeof(Byte), PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (shadow == MAP_FAILED) fail("no memory for the shadow of %zu bytes", size);
  }
  bool has(const char* address) const { return begin <= address && address < begin + bytes; }
  Byte* of(const void* address) const {
    return shadow + (static_cast<const char*>(address) - begin);
  }
};

// For each block, a phase before which all of its accesses are known.
using Phases = std::vector<unsigned>;

Region device, shared, constant;
bool is_tracing = false;
unsigned launch_number = 0, num_threads = 0, block = 0, phase = 0;
std::vector<Phases> seen;      // by block: acquired, and fenced since
Phases published;              // by block: fenced by all of its threads
Phases acquired;               // by the current block, but not fenced yet
std::vector<bool> has_fenced;  // by thread: in this phase, without a write since
std::unordered_map<const void*, Phases> released;  // by address of an atomic

Access now() { return {launch_number, block, phase, thread_index().x}; }

bool is_before(const Access& a, const Access& b, bool is_device) {
  if (a.launch != b.launch) return true;
  if (!is_device && a.block != b.block) return true;  // each block has its own shared memory
  if (a.block == b.block) return a.thread == b.thread || a.phase < b.phase;
  if (a.block != kSeveral) return a.phase < seen[b.block][a.block];
  const Phases& known = seen[b.block];
  for (unsigned other = 0; other < known.size(); ++other) {
    if (a.phase >= (other == b.block ? b.phase : known[other])) return false;
  }
  return true;
}

void join(Phases* into, const Phases& other) {
  if (into->size() < other.size()) into->resize(other.size());
  for (size_t b = 0; b < other.size(); ++b) (*into)[b] = std::max((*into)[b], other[b]);
}

void note(Access* last, const Access& a, bool is_device) {
  if (is_before(*last, a, is_device)) {
    *last = a;
    return;
  }
  if (last->block != a.block) last->block = kSeveral;
  last->thread = kSeveral;
  last->phase = std::max(last->phase, a.phase);
}

[[noreturn]] void fail_race(const Access& a, const char* first, const char* second,
                            const void* address, bool is_device) {
  fail("a race for %s memory at %p: %s by block %d, thread %d in phase %u, and %s in phase %u",
       is_device ? "device" : "shared", address, first, static_cast<int>(a.block),
       static_cast<int>(a.thread), a.phase, second, phase);
}

void note_byte(const void* address, Byte* byte, Kind kind, bool is_device) {
  const Access a = now();
  const bool is_fresh =
      is_device ? !byte->is_written : byte->write.launch != a.launch || byte->write.block != block;
  if (is_device && !byte->is_allocated)
    fail("an access to device memory not allocated: %p", address);
  if (kind != Kind::kWrite && is_fresh) {
    fail("%s memory is read at %p, and was not written", is_device ? "device" : "shared", address);
  }
  const char* what[] = {"read", "written", "changed by an atomic"};
  const char* this_one = what[static_cast<int>(kind)];
  if (!is_before(byte->write, a, is_device))
    fail_race(byte->write, "written", this_one, address, is_device);
  if (kind != Kind::kRead && !is_before(byte->read, a, is_device)) {
    fail_race(byte->read, "read", this_one, address, is_device);
  }
  if (kind != Kind::kAtomic && !is_before(byte->atomic, a, is_device)) {
    fail_race(byte->atomic, "changed by an atomic", this_one, address, is_device);
  }
  if (kind == Kind::kRead) note(&byte->read, a, is_device);
  // An atomic is ordered after all earlier ones at its address, so an access that is ordered after
  // it is ordered after them.
  if (kind == Kind::kAtomic) byte->atomic = a;
  if (kind == Kind::kWrite) byte->write = a;
  if (kind == Kind::kWrite) byte->is_written = true;
}

void note_access(const void* address, size_t bytes, Kind kind) {
  if (!is_tracing) return;
  const auto* begin = static_cast<const char*>(address);
  const bool is_device = device.has(begin);
  if (!is_device && !shared.has(begin)) {
    if (constant.has(begin) && kind == Kind::kRead) return;
    if (is_on_stack(address)) return;
    fail("a kernel touches memory of the host at %p", address);
  }
  if (kind == Kind::kWrite) has_fenced[thread_index().x] = false;
  Byte* byte = (is_device ? device : shared).of(address);
  for (size_t i = 0; i < bytes; ++i) note_byte(begin + i, byte + i, kind, is_device);
}

// An atomic releases what its block has fenced, and acquires what others released at its next
// fence.
void note_atomic(const void* address, size_t bytes, bool is_change) {
  if (!is_tracing) return;
  note_access(address, bytes, Kind::kAtomic);
  if (!device.has(static_cast<const char*>(address))) return;
  Phases& here = released[address];
  join(&acquired, here);
  if (!is_change) return;
  Phases mine = seen[block];
  mine[block] = published[block];
  join(&here, mine);
}

// Finds the segments of the kernels' library. Its writable segment is their shared memory.
int find_segments(dl_phdr_info* info, size_t, void*) {
  const auto here = reinterpret_cast<uintptr_t>(&find_segments);
  const auto* segments_end = info->dlpi_phdr + info->dlpi_phnum;
  const bool is_ours = std::any_of(info->dlpi_phdr, segments_end, [&](const auto& segment) {
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    return segment.p_type == PT_LOAD && begin <= here && here < begin + segment.p_memsz;
  });
  if (!is_ours) return 0;
  for (const auto* segment = info->dlpi_phdr; segment != segments_end; ++segment) {
    if (segment->p_type != PT_LOAD || (segment->p_flags & PF_X) != 0) continue;
    const auto* begin = reinterpret_cast<const char*>(info->dlpi_addr + segment->p_vaddr);
    if ((segment->p_flags & PF_W) != 0) {
      shared.cover(begin, segment->p_memsz);
    } else if (begin > constant.begin) {
      constant.begin = begin;  // the last one, .rodata; its bytes are not traced
      constant.bytes = segment->p_memsz;
    }
  }
  return 1;
}

}  // namespace

void begin(const char* arena, size_t bytes) {
  device.cover(arena, bytes);
  dl_iterate_phdr(find_segments, nullptr);
}

void allocated(const void* address, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) device.of(address)[i] = {.is_allocated = true};
}
void freed(const void* address, size_t bytes) {
  std::memset(static_cast<void*>(device.of(address)), 0, bytes * sizeof(Byte));
}
void written(const void* address, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) device.of(address)[i].is_written = true;
}
void check_written(const void* address, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (!device.of(address)[i].is_written) fail("byte %zu of a result was not written", i);
  }
}

void begin_launch(unsigned blocks, unsigned threads) {
  ++launch_number;
  num_threads = threads;
  seen.assign(blocks, Phases(blocks, 0));
  published.assign(blocks, 0);
  released.clear();
  is_tracing = true;
}

void begin_block(unsigned b) {
  block = b;
  phase = 0;
  acquired.clear();
  has_fenced.assign(num_threads, false);
}

void end_phase() {
  ++phase;
  if (std::all_of(has_fenced.begin(), has_fenced.end(), [](bool fenced) { return fenced; })) {
    published[block] = phase;
  }
  has_fenced.assign(num_threads, false);
}

void fence() {
  has_fenced[thread_index().x] = true;
  join(&seen[block], acquired);
}

void end_launch() { is_tracing = false; }

}  // namespace emulator::tracer

// The compiler inserts a call of one of these at each access.

using emulator::tracer::Kind;
using emulator::tracer::note_access;
using emulator::tracer::note_atomic;

#define PLAIN(bytes)                                                                              \
  extern "C" void __tsan_read##bytes(void* a) { note_access(a, bytes, Kind::kRead); }             \
  extern "C" void __tsan_write##bytes(void* a) { note_access(a, bytes, Kind::kWrite); }           \
  extern "C" void __tsan_unaligned_read##bytes(void* a) { note_access(a, bytes, Kind::kRead); }   \
  extern "C" void __tsan_unaligned_write##bytes(void* a) { note_access(a, bytes, Kind::kWrite); } \
  extern "C" void __tsan_volatile_read##bytes(void* a) { note_access(a, bytes, Kind::kRead); }    \
  extern "C" void __tsan_volatile_write##bytes(void* a) { note_access(a, bytes, Kind::kWrite); }
PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

extern "C" void __tsan_read_range(void* a, size_t bytes) { note_access(a, bytes, Kind::kRead); }
extern "C" void __tsan_write_range(void* a, size_t bytes) { note_access(a, bytes, Kind::kWrite); }
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

#define ATOMIC(bits, T)                                                                    \
  extern "C" T __tsan_atomic##bits##_load(const volatile T* a, int) {                      \
    note_atomic(const_cast<const T*>(a), sizeof(T), false);                                \
    return *a;                                                                             \
  }                                                                                        \
  extern "C" T __tsan_atomic##bits##_fetch_add(volatile T* a, T value, int) {              \
    note_atomic(const_cast<const T*>(a), sizeof(T), true);                                 \
    return __atomic_fetch_add(a, value, __ATOMIC_RELAXED);                                 \
  }                                                                                        \
  extern "C" T __tsan_atomic##bits##_fetch_or(volatile T* a, T value, int) {               \
    note_atomic(const_cast<const T*>(a), sizeof(T), true);                                 \
    return __atomic_fetch_or(a, value, __ATOMIC_RELAXED);                                  \
  }                                                                                        \
  extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile T* a, T* expected, \
                                                               T desired, int, int) {      \
    note_atomic(const_cast<const T*>(a), sizeof(T), true);                                 \
    return __atomic_compare_exchange_n(a, expected, desired, false, __ATOMIC_RELAXED,      \
                                       __ATOMIC_RELAXED);                                  \
  }                                                                                        \
  extern "C" int __tsan_atomic##bits##_compare_exchange_weak(volatile T* a, T* expected,   \
                                                             T desired, int s, int f) {    \
    return __tsan_atomic##bits##_compare_exchange_strong(a, expected, desired, s, f);      \
  }
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)

#endif  // EMULATOR_TRACE
