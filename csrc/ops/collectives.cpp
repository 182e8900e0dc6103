// What several processes give each other.
//
// In native code for the sake of processes that fork, as an epoch does for its workers soon after
// the processes have met. A thread of gloo lets go of a collective's tensors some time after it was
// waited for. Where Python knows them, that thread needs the interpreter for it, and whoever forks
// at that moment may give his child a lock that nobody is there to open: in Python before 3.10.15,
// and 3.11 before 3.11.10 (github.com/python/cpython/issues/112275). So the tensors here are such
// as Python has never seen: what comes in is copied, and so is what goes out.
#include <ATen/Functions.h>

#include <string>
#include <vector>

#include "operators.h"

#ifdef DYNLOADER_WITH_DISTRIBUTED
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#endif

namespace dynloader {

#ifdef DYNLOADER_WITH_DISTRIBUTED

namespace {

// Some groups are through when they return, and leave nothing to wait for.
void wait_for(const c10::intrusive_ptr<c10d::Work>& work) {
  if (work) work->wait();
}

}  // namespace

at::Tensor all_gather(const at::Tensor& mine, const std::string& group) {
  const auto processes = c10d::resolve_process_group(group);
  std::vector<at::Tensor> sent = {mine.clone(at::MemoryFormat::Contiguous)};
  std::vector<std::vector<at::Tensor>> received(1);
  for (int rank = 0; rank < processes->getSize(); ++rank) {
    received[0].push_back(at::empty_like(sent[0]));
  }
  c10d::AllgatherOptions options;
  options.asyncOp = false;
  wait_for(processes->allgather(received, sent, options));
  return at::stack(received[0]);
}

at::Tensor all_reduce(const at::Tensor& mine, const std::string& reduction,
                      const std::string& group) {
  const bool is_max = reduction == "max";
  TORCH_CHECK_VALUE(is_max || reduction == "sum",
                    "all_reduce: reduction must be \"max\" or \"sum\", got \"", reduction, "\"");
  const auto processes = c10d::resolve_process_group(group);
  std::vector<at::Tensor> values = {mine.clone(at::MemoryFormat::Contiguous)};
  c10d::AllreduceOptions options;
  options.asyncOp = false;
  options.reduceOp = is_max ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
  wait_for(processes->allreduce(values, options));
  return values[0].clone();
}

#else

at::Tensor all_gather(const at::Tensor&, const std::string&) {
  TORCH_CHECK(false, "all_gather: this torch was built without torch.distributed");
}

at::Tensor all_reduce(const at::Tensor&, const std::string&, const std::string&) {
  TORCH_CHECK(false, "all_reduce: this torch was built without torch.distributed");
}

#endif

}  // namespace dynloader
