#include "emulator.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "tracer.h"

// Present if AddressSanitizer is linked: marks memory as inaccessible.
extern "C" __attribute__((weak)) void __asan_poison_memory_region(void const volatile*, size_t);
extern "C" __attribute__((weak)) void __asan_unpoison_memory_region(void const volatile*, size_t);

namespace emulator {
namespace {

constexpr size_t kStackBytes = size_t{1} << 17;
constexpr size_t kArenaBytes = size_t{1} << 28;
constexpr size_t kAlignment = 512;
constexpr int kPoison = 0xa5;

// A paused thread. swapcontext makes two system calls, which take as long as a whole case here.
#if defined(__x86_64__)
using Context = void**;  // its stack, with the registers that a call preserves

__attribute__((naked, noinline)) void switch_to(Context* /*from*/, Context /*to*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
      "mov %rsp, (%rdi); mov %rsi, %rsp\n"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

void prepare(Context* context, void* stack, size_t bytes, void (*function)()) {
  void** top = static_cast<void**>(stack) + bytes / sizeof(void*);
  *--top = nullptr;  // the return address of `function`
  *--top = reinterpret_cast<void*>(function);
  *context = top - 6;
}
#else
using Context = ucontext_t;

void switch_to(Context* from, const Context& to) { swapcontext(from, &to); }

void prepare(Context* context, void* stack, size_t bytes, void (*function)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, function, 0);
}
#endif

enum class State { kReady, kAtBarrier, kAtExchange, kDone };

// A thread of the block, and the point where it waits.
struct Fiber {
  Context context;
  void* stack;
  State state;
  int line;
  unsigned mask;
  int parity;
};

struct Launch {
  const void* kernel;
  unsigned blocks, threads;
  void (*call)(void*);
  void* context;
};

std::mt19937_64 generator;
Launch current = {};
unsigned block = 0;
int running = -1;  // the thread, or -1 for the host
Fiber fibers[kMaxThreads] = {};
// Two buffers, because some lanes may start the next exchange before others have read this one.
uint64_t exchanged[2][kMaxThreads];
Context scheduler;

char* arena = nullptr;
size_t arena_used = 0;
struct Allocation {
  char* begin;
  size_t bytes;
};
std::vector<Allocation> allocations;

// What was asked of the GPU. If is_only_counting, nothing is executed, and memory has no end.
struct Counts {
  int64_t launches, memsets, scratch_bytes;
};
Counts counts = {};
bool is_only_counting = false;

void run_thread() {
  current.call(current.context);
  fibers[running].state = State::kDone;
  switch_to(&fibers[running].context, scheduler);
}

void resume(int thread) {
  running = thread;
  fibers[thread].state = State::kReady;
  switch_to(&scheduler, fibers[thread].context);
  running = -1;
}

void pause(State state) {
  Fiber& fiber = fibers[running];
  fiber.state = state;
  switch_to(&fiber.context, scheduler);
}

// Stores this lane's value, waits, and returns the values of all lanes.
const uint64_t* exchange_all(unsigned mask, uint64_t value, int line) {
  const int thread = running;
  Fiber& fiber = fibers[thread];
  if ((mask >> (thread % kWarpSize) & 1u) == 0) fail("a lane outside of the mask of its exchange");
  uint64_t* values = exchanged[fiber.parity];
  values[thread] = value;
  fiber.parity ^= 1;
  fiber.mask = mask;
  fiber.line = line;
  pause(State::kAtExchange);
  return values + thread / kWarpSize * kWarpSize;
}

// Resumes the lanes of each warp whose exchange is complete.
bool complete_exchanges() {
  bool is_any = false;
  const int threads = static_cast<int>(current.threads);
  for (int first = 0; first < threads; first += kWarpSize) {
    for (int t = first; t < std::min(first + kWarpSize, threads); ++t) {
      if (fibers[t].state != State::kAtExchange) continue;
      const Fiber wanted = fibers[t];
      bool is_complete = true;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((wanted.mask >> lane & 1u) == 0) continue;
        const Fiber& other = fibers[first + lane];
        is_complete &= first + lane < threads && other.state == State::kAtExchange &&
                       other.mask == wanted.mask && other.line == wanted.line;
      }
      if (!is_complete) continue;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((wanted.mask >> lane & 1u) != 0) fibers[first + lane].state = State::kReady;
      }
      is_any = true;
    }
  }
  return is_any;
}

void complete_barrier() {
  const int threads = static_cast<int>(current.threads);
  int at_barrier = 0;
  int at_exchange = -1;
  for (int t = 0; t < threads; ++t) {
    at_barrier += fibers[t].state == State::kAtBarrier;
    if (fibers[t].state == State::kAtExchange) at_exchange = t;
  }
  if (at_exchange >= 0) {
    running = at_exchange;
    fail("the exchange of line %d is not reached by all lanes of its mask",
         fibers[at_exchange].line);
  }
  for (int t = 0; t < threads; ++t) {
    if (at_barrier == threads && fibers[t].line == fibers[0].line) continue;
    running = t;
    fail("a barrier is not reached by all threads: %d of %d are at one, thread %d is %s (line %d)",
         at_barrier, threads, t, fibers[t].state == State::kDone ? "done" : "at another",
         fibers[t].line);
  }
  for (int t = 0; t < threads; ++t) fibers[t].state = State::kReady;
  tracer::end_phase();
}

void run_block() {
  const int threads = static_cast<int>(current.threads);
  for (int t = 0; t < threads; ++t) {
    if (fibers[t].stack == nullptr) {
      fibers[t].stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    prepare(&fibers[t].context, fibers[t].stack, kStackBytes, run_thread);
    fibers[t].state = State::kReady;
    fibers[t].parity = 0;
  }
  for (;;) {
    const int first = static_cast<int>(generator() % current.threads);
    int done = 0;
    bool is_any = false;
    for (int j = 0; j < threads; ++j) {
      const int t = (first + j) % threads;
      if (fibers[t].state == State::kReady) {
        resume(t);
        is_any = true;
      }
      done += fibers[t].state == State::kDone;
    }
    if (done == threads) return;
    if (!complete_exchanges() && !is_any) complete_barrier();
  }
}

void open_arena(bool is_open) {
  mprotect(arena, kArenaBytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

const Allocation* allocation_of(const void* address, size_t bytes) {
  const auto* begin = static_cast<const char*>(address);
  for (const Allocation& a : allocations) {
    if (a.begin <= begin && begin + bytes <= a.begin + a.bytes) return &a;
  }
  return nullptr;
}

void on_bad_access(int, siginfo_t* info, void*) {
  const auto* address = static_cast<const char*>(info->si_addr);
  const bool is_device = arena <= address && address < arena + kArenaBytes;
  if (is_device && running < 0) fail("the host touched device memory at %p", info->si_addr);
  fail("no memory at %p", info->si_addr);
}

void begin() {
  if (arena != nullptr) return;
  arena = static_cast<char*>(
      mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(arena, kArenaBytes);
  struct sigaction action = {};
  action.sa_sigaction = on_bad_access;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  tracer::begin(arena, kArenaBytes);
}

}  // namespace

Index thread_index() { return {static_cast<unsigned>(running), 0, 0}; }
Index block_index() { return {block, 0, 0}; }
Index grid_size() { return {current.blocks, 1, 1}; }

void wait_for_block(int line) {
  fibers[running].line = line;
  pause(State::kAtBarrier);
}

uint64_t exchange(unsigned mask, uint64_t value, int lane, int line) {
  const uint64_t* values = exchange_all(mask, value, line);
  return 0 <= lane && lane < kWarpSize ? values[lane] : value;
}

unsigned ballot(unsigned mask, bool vote, int line) {
  const uint64_t* votes = exchange_all(mask, vote ? 1 : 0, line);
  unsigned result = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1u) != 0 && votes[lane] != 0) result |= 1u << lane;
  }
  return result;
}

bool is_on_stack(const void* address) {
  const auto* begin = static_cast<const char*>(fibers[running].stack);
  return begin <= address && address < begin + kStackBytes;
}

void fence() { tracer::fence(); }

void launch(const void* kernel, unsigned blocks, unsigned threads, void* stream,
            void (*call)(void*), void* context) {
  begin();
  ++counts.launches;
  if (is_only_counting) return;
  current = {kernel, blocks, threads, call, context};
  if (stream != kStream) fail("a launch on another stream");
  if (blocks < 1 || threads < 1 || threads > kMaxThreads) {
    fail("a launch of %u blocks of %u threads", blocks, threads);
  }
  std::vector<unsigned> order(blocks);
  for (unsigned b = 0; b < blocks; ++b) order[b] = b;
  std::shuffle(order.begin(), order.end(), generator);
  open_arena(true);
  tracer::begin_launch(blocks, threads);
  for (const unsigned b : order) {
    block = b;
    tracer::begin_block(b);
    run_block();
  }
  tracer::end_launch();
  open_arena(false);
}

void* allocate(size_t bytes) {
  begin();
  char* address = arena + arena_used;
  counts.scratch_bytes += static_cast<int64_t>(bytes);
  if (is_only_counting) return address;
  arena_used += (bytes + kAlignment) / kAlignment * kAlignment;
  if (arena_used > kArenaBytes) fail("device memory is full");
  allocations.push_back({address, bytes});
  if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(address, bytes);
  tracer::allocated(address, bytes);
  open_arena(true);
  memset(address, kPoison, bytes);
  open_arena(false);
  return address;
}

void set(void* address, int value, size_t bytes) {
  ++counts.memsets;
  if (is_only_counting) return;
  if (allocation_of(address, bytes) == nullptr) fail("a memset of what is not allocated");
  open_arena(true);
  memset(address, value, bytes);
  open_arena(false);
  tracer::written(address, bytes);
}

void copy_to_device(void* to, const void* from, size_t bytes) {
  if (allocation_of(to, bytes) == nullptr) fail("a copy to what is not allocated");
  open_arena(true);
  memcpy(to, from, bytes);
  open_arena(false);
  tracer::written(to, bytes);
}

void copy_to_host(void* to, const void* from, size_t bytes) {
  if (allocation_of(from, bytes) == nullptr) fail("a copy of what is not allocated");
  tracer::check_written(from, bytes);
  open_arena(true);
  memcpy(to, from, bytes);
  open_arena(false);
}

void free_all() {
  for (const Allocation& a : allocations) {
    if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(a.begin, a.bytes);
    tracer::freed(a.begin, a.bytes);
  }
  allocations.clear();
  arena_used = 0;
}

void fail(const char* format, ...) {
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  fprintf(stderr, "emulator: %s\n", message);
  Dl_info symbol = {};
  if (current.kernel != nullptr && dladdr(current.kernel, &symbol) != 0 &&
      symbol.dli_sname != nullptr) {
    const std::unique_ptr<char, void (*)(void*)> name(
        abi::__cxa_demangle(symbol.dli_sname, nullptr, nullptr, nullptr), free);
    fprintf(stderr, "  block %u, thread %d of the kernel launched last: %s\n", block, running,
            name != nullptr ? name.get() : symbol.dli_sname);
  }
  fflush(stderr);
  abort();
}

extern "C" void emulator_seed(uint64_t seed) { generator.seed(seed); }
extern "C" void emulator_only_count() {
  is_only_counting = true;
  counts = {};
}
extern "C" void emulator_counts(int64_t* result) {
  result[0] = counts.launches;
  result[1] = counts.memsets;
  result[2] = counts.scratch_bytes;
}
extern "C" void* emulator_allocate(size_t bytes) { return allocate(bytes); }
extern "C" void emulator_free_all() { free_all(); }
extern "C" void emulator_to_device(void* to, const void* from, size_t bytes) {
  copy_to_device(to, from, bytes);
}
extern "C" void emulator_to_host(void* to, const void* from, size_t bytes) {
  copy_to_host(to, from, bytes);
}

}  // namespace emulator
