#include "feeder.h"

#include <pthread.h>

#include <atomic>
#include <utility>

#include "checks.h"
#include "memory.h"
#include "run_on.h"

namespace dynloader {
namespace {

// How many processes were forked on the way to this one; asking the system who it is takes longer.
std::atomic<int64_t> num_forks = 0;
// Registers when the library is loaded. Later, another thread could fork during the registration.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++num_forks; });

}  // namespace

ImageBatch Column::image_batch(const char* op, const Address& address, int64_t batch_size) const {
  ImageOptions all = *options;
  all.values = values.defined() ? &values : nullptr;
  return dynloader::image_batch(op, data, all, address, batch_size);
}

Feeder::Feeder(Address address, bool pin_memory)
    : address_(address), pin_memory_(pin_memory), forks_(num_forks) {}

void Feeder::add(Column column) {
  const Tensor& data = column.data;
  CHECK_STATE(!is_started_, "Feeder: arrays must be added before the start");
  CHECK_VALUE(data.is_cpu(), "Feeder: arrays must be on the CPU, got ", data.device());
  CHECK_VALUE(data.dim() >= 1 && data.is_contiguous(),
              "Feeder: arrays must be contiguous, of at least one dimension, got strides ",
              data.strides());
  CHECK_VALUE(columns_.empty() || data.size(0) == columns_[0].data.size(0),
              "Feeder: arrays must be of one length, got ", columns_[0].data.size(0), " and ",
              data.size(0));
  if (column.options) column.image_batch("Feeder", address_, 0);
  columns_.push_back(std::move(column));
}

void Feeder::start(int64_t num_threads) {
  CHECK_VALUE(!columns_.empty(), "Feeder: columns must hold at least one array, got none");
  CHECK_STATE(!is_started_, "Feeder: it was started before");
  is_started_ = true;
  threads_.reserve(static_cast<size_t>(num_threads));
  for (int64_t j = 0; j < num_threads; ++j) threads_.emplace_back([this] { work(); });
}

Feeder::~Feeder() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
  }
  has_work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool Feeder::is_here() const { return forks_ == num_forks; }

void Feeder::check_here() const {
  CHECK_STATE(is_here(),
              "DataLoader: an iterator over arrays cannot go on in a process that was forked since "
              "it began; begin another with iter()");
}

void Feeder::begin(Address address) {
  check_here();
  const std::lock_guard<std::mutex> lock(mutex_);
  CHECK_VALUE(jobs_.empty(), "Feeder: begin needs all batches to be taken, got ", jobs_.size(),
              " that were not");
  address_ = address;
}

void Feeder::submit(const Tensor& index) {
  check_here();
  CHECK_STATE(is_started_, "Feeder: submit needs a feeder that was started");
  CHECK_VALUE(index.is_cpu(), "Feeder: index must be on the CPU, got ", index.device());
  check_dtype("Feeder", "index", index, codes.int64);
  check_vector("Feeder", "index", index);
  auto job = std::make_shared<Job>();
  job->index = index.is_contiguous() ? index.another() : index.clone();
  bool is_wanted = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
    is_wanted = num_idle_ > 0;
  }
  if (is_wanted) has_work_.notify_one();
}

int64_t Feeder::num_submitted() {
  check_here();
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(jobs_.size());
}

std::vector<Tensor> Feeder::take() {
  check_here();
  std::unique_lock<std::mutex> lock(mutex_);
  CHECK_VALUE(!jobs_.empty(), "Feeder: take needs a batch that was submitted, got none");
  const std::shared_ptr<Job> job = jobs_.front();
  while (job->state != State::kDone) {
    // While another thread gathers this batch, gathers the next one.
    if (!run_next(lock)) is_done_.wait(lock);
  }
  jobs_.pop_front();
  lock.unlock();
  // Releases the index here, not in the thread that drops the job: freeing a tensor that Python
  // holds may need the interpreter's lock.
  job->index.reset();
  if (job->error) std::rethrow_exception(job->error);
  return std::move(job->batch);
}

void Feeder::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_closed_) {
    if (run_next(lock)) continue;
    ++num_idle_;
    has_work_.wait(lock);
    --num_idle_;
  }
}

bool Feeder::run_next(std::unique_lock<std::mutex>& lock) {
  for (const std::shared_ptr<Job>& job : jobs_) {
    if (job->state != State::kWaiting) continue;
    job->state = State::kRunning;
    const std::shared_ptr<Job> held = job;  // the deque may change
    lock.unlock();
    run(*held);
    lock.lock();
    held->state = State::kDone;
    is_done_.notify_one();
    return true;
  }
  return false;
}

void Feeder::run(Job& job) const {
  try {
    job.batch = gather(job.index);
  } catch (...) {
    job.error = std::current_exception();
  }
}

std::vector<Tensor> Feeder::gather(const Tensor& index) const {
  check_indices("DataLoader", "index", index, columns_[0].data.size(0));
  const HostThreads here = {1, share_out};
  int64_t faults[2] = {};
  std::vector<Tensor> batch;
  batch.reserve(columns_.size());
  for (const Column& column : columns_) {
    if (column.options) {
      ImageBatch made = column.image_batch("DataLoader", address_, index.numel());
      batch.push_back(empty_batch({made.sizes, 4}, {made.strides, 4}, made.dtype, pin_memory_));
      made.call.index = index.data<int64_t>();
      made.call.batch = batch.back().mutable_data();
      made.call.faults = faults;
      WorkingMemory memory(Device{codes.cpu, -1});
      run_on_cpu_threads(here, memory.view(), made.call);
    } else {
      const Tensor& data = column.data;
      GatherRows call = row_batch(data, index);
      std::vector<int64_t> sizes(data.sizes().begin(), data.sizes().end());
      sizes[0] = index.numel();
      batch.push_back(
          empty_batch({sizes.data(), data.dim()}, data.strides(), data.dtype(), pin_memory_));
      call.batch = batch.back().mutable_data();
      call.faults = faults;
      run_on_cpu_threads(here, {}, call);
    }
  }
  return batch;
}

}  // namespace dynloader
