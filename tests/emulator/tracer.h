// Traces every memory access of a kernel, and ends the program at an access that
// - races with another thread: the two are unordered, and one of them writes,
// - reads uninitialized memory,
// - is outside of allocated device memory.
// Needs kernels compiled with -fsanitize=thread, whose calls tracer.cpp implements.
#pragma once

#include <cstddef>

namespace emulator::tracer {

#ifdef EMULATOR_TRACE
void begin(const char* arena, size_t bytes);
void allocated(const void* address, size_t bytes);
void freed(const void* address, size_t bytes);
void written(const void* address, size_t bytes);  // by the host
void check_written(const void* address, size_t bytes);
void begin_launch(unsigned blocks, unsigned threads);
void begin_block(unsigned block);
void end_phase();  // all threads have reached a barrier
void fence();
void end_launch();
#else
inline void begin(const char*, size_t) {}
inline void allocated(const void*, size_t) {}
inline void freed(const void*, size_t) {}
inline void written(const void*, size_t) {}
inline void check_written(const void*, size_t) {}
inline void begin_launch(unsigned, unsigned) {}
inline void begin_block(unsigned) {}
inline void end_phase() {}
inline void fence() {}
inline void end_launch() {}
#endif

}  // namespace emulator::tracer
