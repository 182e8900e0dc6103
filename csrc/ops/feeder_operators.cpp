// The feeder as operators, which refer to it by a number. Torch calls them without the
// interpreter's lock: the feeder's threads never need it, and a caller that waits for them must not
// hold it.
#include <pthread.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "checks.h"
#include "feeder.h"
#include "operators.h"

namespace dynloader {
namespace {

// The open feeders.
class Feeders {
 public:
  // Never destroyed, because a feeder may outlive static objects.
  static Feeders& instance() {
    static auto* feeders = new Feeders;
    return *feeders;
  }

  int64_t add(std::shared_ptr<Feeder> feeder) {
    const std::lock_guard<std::mutex> lock(mutex_);
    feeders_.emplace(++last_, std::move(feeder));
    return last_;
  }

  // A feeder of the parent of a forked process has no threads here, and remains open.
  std::shared_ptr<Feeder> at(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = feeders_.find(number);
    CHECK_VALUE(found != feeders_.end(), "Feeder: it must be open, got number ", number);
    return found->second;
  }

  std::shared_ptr<Feeder> remove(int64_t number) {
    std::shared_ptr<Feeder> feeder = at(number);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (feeder->is_here()) feeders_.erase(number);
    return feeder;
  }

 private:
  Feeders() {
    // A process forked while another thread held the lock would wait for it forever.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Feeder>> feeders_;
  int64_t last_ = 0;
};

Address address_of(int64_t seed, int64_t epoch) {
  check_epoch("Feeder", epoch);
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch)};
}

}  // namespace

int64_t feeder_open(int64_t seed, int64_t epoch, bool pin_memory) {
  return Feeders::instance().add(std::make_shared<Feeder>(address_of(seed, epoch), pin_memory));
}

void feeder_add_rows(int64_t feeder, const Tensor& data) {
  Feeders::instance().at(feeder)->add({data.another(), std::nullopt, {}});
}

void feeder_add_images(int64_t feeder, const Tensor& images, const std::vector<int64_t>& crop,
                       int64_t padding, bool is_reflected, double flip_probability,
                       bool flip_alternates, int64_t cutout, double fill,
                       std::optional<Tensor>& values, bool from_channels_last,
                       bool to_channels_last, const std::vector<double>& resize,
                       const std::vector<double>& jitter) {
  CHECK_VALUE(crop.size() == 2, "Feeder: crop must be a height and a width, got ", crop.size(),
              " numbers");
  const ImageOptions options = {
      crop[0],          crop[1], padding, is_reflected, flip_probability,
      flip_alternates,  cutout,  fill,    nullptr,      from_channels_last,
      to_channels_last, resize,  jitter};
  Feeders::instance().at(feeder)->add(
      {images.another(), options, values ? std::move(*values) : Tensor()});
}

void feeder_start(int64_t feeder, int64_t num_threads) {
  check_count("Feeder", "num_threads", num_threads, 1024);
  Feeders::instance().at(feeder)->start(num_threads);
}

void feeder_begin(int64_t feeder, int64_t seed, int64_t epoch) {
  Feeders::instance().at(feeder)->begin(address_of(seed, epoch));
}

void feeder_submit(int64_t feeder, const Tensor& index) {
  Feeders::instance().at(feeder)->submit(index);
}

std::vector<Tensor> feeder_take(int64_t feeder) { return Feeders::instance().at(feeder)->take(); }

int64_t feeder_num_submitted(int64_t feeder) {
  return Feeders::instance().at(feeder)->num_submitted();
}

void feeder_close(int64_t feeder) { Feeders::instance().remove(feeder); }

}  // namespace dynloader
