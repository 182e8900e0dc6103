// Gathers batches of arrays in host memory ahead of their use.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "batch.h"
#include "tensor.h"

namespace dynloader {

// One array [n, ...] on the CPU, and the transforms of its rows if they are images.
struct Column {
  Tensor data;
  std::optional<ImageOptions> options;  // without their `values`
  Tensor values;                        // value of each byte; may be undefined

  ImageBatch image_batch(const char* op, const Address& address, int64_t batch_size) const;
};

// Takes batches of indices, and returns batches of rows in the same order. Its own threads gather
// ahead of the caller. One thread gathers each batch, so that threads never wait for each other
// within a batch. If no thread has started the batch that the caller takes, the caller gathers it.
//
// For one consumer: submit and take must not be called concurrently. A forked process has none of
// the threads, so it cannot use its copy.
class Feeder {
 public:
  Feeder(Address address, bool pin_memory);
  Feeder(const Feeder&) = delete;
  Feeder& operator=(const Feeder&) = delete;
  // Drops the batches that no thread has started.
  ~Feeder();

  // All columns must be added before start().
  void add(Column column);
  void start(int64_t num_threads);
  // Starts another epoch. All submitted batches must have been taken.
  void begin(Address address);
  void submit(const Tensor& index);
  // The batch submitted first of those that were not taken: one tensor for each column. Raises what
  // its gathering raised.
  std::vector<Tensor> take();
  int64_t num_submitted();
  // Whether this process created the feeder, rather than a parent that forked.
  bool is_here() const;

 private:
  // A thread may have held the lock when the process was forked, so check this before taking it.
  void check_here() const;

  enum class State { kWaiting, kRunning, kDone };
  struct Job {
    Tensor index;
    State state = State::kWaiting;
    std::vector<Tensor> batch;
    std::exception_ptr error;
  };

  void work();
  // Gathers the first batch that no thread has started, while the lock is released. Returns false
  // if there is none.
  bool run_next(std::unique_lock<std::mutex>& lock);
  void run(Job& job) const;
  std::vector<Tensor> gather(const Tensor& index) const;

  std::vector<Column> columns_;
  Address address_;
  const bool pin_memory_;
  std::mutex mutex_;
  std::condition_variable has_work_, is_done_;
  std::deque<std::shared_ptr<Job>> jobs_;
  const int64_t forks_;  // before this feeder was made
  bool is_started_ = false;
  bool is_closed_ = false;
  int num_idle_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace dynloader
