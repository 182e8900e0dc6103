// Checks the guarantees of csrc/ops/threads.h without Python and torch. Prints failures.
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/ops/threads.h"

namespace {

std::atomic<int> num_faults = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  ++num_faults;
  std::printf("fault: %s\n", what);
}

using Range = std::function<void(int64_t slot, int64_t first, int64_t last)>;

void share_out(int64_t threads, int64_t tiles, const Range& range) {
  dynloader::share_out(
      threads, tiles,
      [](void* context, int64_t slot, int64_t first, int64_t last) {
        (*static_cast<const Range*>(context))(slot, first, last);
      },
      const_cast<Range*>(&range));
}

// Runs a loop whose state is freed when it returns: a late thread must not touch it.
void one_loop(int64_t threads, int64_t tiles, int work = 0) {
  auto visits = std::make_unique<std::vector<int>>(static_cast<size_t>(tiles));
  auto is_used = std::make_unique<std::vector<std::atomic<bool>>>(static_cast<size_t>(threads));
  share_out(threads, tiles, [&](int64_t slot, int64_t first, int64_t last) {
    check(0 <= slot && slot < threads, "a slot is out of range");
    check(0 <= first && first < last && last <= tiles, "a range is out of range");
    check(!(*is_used)[static_cast<size_t>(slot)].exchange(true), "two calls have one slot");
    for (int64_t tile = first; tile < last; ++tile) {
      for (volatile int j = 0; j < work;) j = j + 1;
      ++(*visits)[static_cast<size_t>(tile)];
    }
    (*is_used)[static_cast<size_t>(slot)] = false;
  });
  for (const int count : *visits) check(count == 1, "a tile is not visited once");
}

void loops() {
  for (const int64_t threads : {1, 2, 3, 8}) {
    for (const int64_t tiles : {0, 1, 2, 3, 7, 8, 9, 64, 1000}) {
      for (int again = 0; again < 5; ++again) one_loop(threads, tiles, again * 100);
    }
    one_loop(threads, 1000, 2000);  // long enough to wake other threads
  }
}

void errors() {
  for (const int64_t wanted : {0, 1, 5, 63}) {
    bool is_thrown = false;
    try {
      share_out(8, 64, [&](int64_t, int64_t first, int64_t last) {
        if (first <= wanted && wanted < last) throw std::runtime_error(std::to_string(wanted));
      });
    } catch (const std::runtime_error& error) {
      is_thrown = error.what() == std::to_string(wanted);
    }
    check(is_thrown, "an error is lost");
    one_loop(8, 64);
  }
  // All threads throw at once, and another thread may free the exception.
  for (int again = 0; again < 20; ++again) {
    int64_t thrown = -1;
    try {
      share_out(8, 64,
                [&](int64_t, int64_t first, int64_t) { throw std::make_unique<int64_t>(first); });
    } catch (const std::unique_ptr<int64_t>& error) {
      thrown = *error;
    }
    check(0 <= thrown && thrown < 64, "all errors are lost");
  }
  one_loop(8, 64);
}

// The allowed number of threads may change from loop to loop: one_loop checks the slots.
void fewer_threads_than_before() {
  for (int again = 0; again < 10; ++again) {
    for (const int64_t threads : {8, 2, 1, 3}) one_loop(threads, 100, 100);
  }
}

void helpers_wake_again() {
  for (int again = 0; again < 3; ++again) {
    usleep(20'000);  // they fall asleep
    bool is_helped = false;
    for (int loop = 0; loop < 3000 && !is_helped; ++loop) {
      std::atomic<bool> helps = false;
      share_out(2, 100, [&](int64_t slot, int64_t, int64_t) {
        if (slot != 0) helps = true;
      });
      is_helped = helps;
    }
    check(is_helped, "a helper does not wake again");
  }
}

cpu_set_t allowed_processors() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  sched_getaffinity(0, sizeof(mask), &mask);
  return mask;
}

// A helper that gets no processor within a tile, here because it sleeps, is moved to the caller's.
// After it was woken again, it works on others.
void helpers_move() {
  const cpu_set_t all = allowed_processors();
  if (CPU_COUNT(&all) < 2) return;
  cpu_set_t moved;
  CPU_ZERO(&moved);
  for (int again = 0; again < 1000 && CPU_COUNT(&moved) == 0; ++again) {
    share_out(2, 2, [&](int64_t slot, int64_t, int64_t) {
      if (slot == 0) return;
      const cpu_set_t before = allowed_processors();
      usleep(20'000);
      const cpu_set_t after = allowed_processors();
      if (CPU_COUNT(&after) == 1 && !CPU_EQUAL(&before, &after)) moved = after;
    });
  }
  check(CPU_COUNT(&moved) == 1, "a helper without a processor is not moved");
  bool is_back = false;
  for (int again = 0; again < 300 && !is_back; ++again) {
    // The kernel may have moved the caller, which would then keep the helper off another processor.
    usleep(5'000);  // the helper falls asleep
    sched_setaffinity(0, sizeof(moved), &moved);
    sched_setaffinity(0, sizeof(all), &all);
    share_out(2, 100, [&](int64_t slot, int64_t, int64_t) {
      const cpu_set_t mask = allowed_processors();
      if (slot != 0 && !CPU_EQUAL(&mask, &moved)) is_back = true;
    });
  }
  check(is_back, "a helper stays on the caller's processor");
}

void loops_within_loops() {
  std::atomic<int> visits = 0;
  share_out(3, 20, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      share_out(3, 20,
                [&](int64_t, int64_t from, int64_t to) { visits += static_cast<int>(to - from); });
    }
  });
  check(visits == 400, "a loop within a loop misses tiles");
}

void several_callers() {
  std::vector<std::thread> callers;
  for (int j = 0; j < 4; ++j) {
    callers.emplace_back([j] {
      for (int again = 0; again < 200; ++again) one_loop(1 + (again + j) % 4, 1 + again, 50);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// The first caller keeps the threads until the second has finished.
void a_second_caller_does_not_wait() {
  std::atomic<bool> is_begun = false, is_over = false;
  std::thread first([&] {
    share_out(3, 100, [&](int64_t, int64_t, int64_t) {
      is_begun = true;
      while (!is_over) std::this_thread::yield();
    });
  });
  while (!is_begun) std::this_thread::yield();
  for (int again = 0; again < 20; ++again) one_loop(3, 100);
  is_over = true;
  first.join();
}

#ifndef __SANITIZE_THREAD__

std::atomic<int> num_held = 0;
std::atomic<bool> is_released = false;

void hold(int) {
  ++num_held;
  while (!is_released) usleep(1000);
  --num_held;
}

// A loop does not wait for helpers that get no processor time; here a signal handler holds them.
void threads_without_a_processor() {
  one_loop(4, 100, 1000);
  usleep(100'000);  // the helpers fall asleep
  signal(SIGUSR1, hold);
  int others = 0;
  DIR* tasks = opendir("/proc/self/task");
  while (const dirent* entry = readdir(tasks)) {
    const int task = std::atoi(entry->d_name);
    if (task == 0 || task == getpid()) continue;
    others += syscall(SYS_tgkill, getpid(), task, SIGUSR1) == 0 ? 1 : 0;
  }
  closedir(tasks);
  check(others >= 3, "there are no helpers");
  while (num_held < others) usleep(1000);
  for (int again = 0; again < 100; ++again) one_loop(4, 100, 1000);
  is_released = true;
  while (num_held > 0) usleep(1000);
  one_loop(4, 100, 1000);
}

// Forks while another thread shares out loops, so that some forks happen within a loop.
void forks() {
  std::atomic<bool> is_over = false;
  std::thread other([&] {
    while (!is_over) one_loop(4, 100, 1000);
  });
  for (int again = 0; again < 20; ++again) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      num_faults = 0;
      for (int j = 0; j < 5; ++j) one_loop(4, 100, 1000);
      _exit(num_faults == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "a forked process fails");
  }
  is_over = true;
  other.join();
}

#endif

}  // namespace

int main() {
  for (const bool eagerly : {true, false}) {
    dynloader::share_eagerly(eagerly);
    loops();
    errors();
    fewer_threads_than_before();
    if (eagerly) helpers_wake_again();
    if (eagerly) helpers_move();
    loops_within_loops();
    several_callers();
    a_second_caller_does_not_wait();
  }
#ifndef __SANITIZE_THREAD__
  dynloader::share_eagerly(true);
  threads_without_a_processor();
  forks();
#endif
  // The process exits in the middle of a loop.
  std::thread([] {
    for (;;) one_loop(4, 100, 1000);
  }).detach();
  usleep(10'000);
  return num_faults == 0 ? 0 : 1;
}
