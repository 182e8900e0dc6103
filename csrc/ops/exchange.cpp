// Operators on the rows of a table that processes exchange.
#include <tuple>
#include <utility>

#include "checks.h"
#include "memory.h"
#include "operators.h"
#include "rows.h"
#include "run_on.h"

namespace dynloader {
namespace {

// Fresh memory for the rows that have changed takes longer than the scan. But a vector for more
// samples than this would leave too little of the memory that is kept to the rows received.
constexpr int64_t kMostReused = int64_t{1} << 25;

void check_known(const char* op, const Tensor& known_visits, int64_t n, const Tensor& records) {
  check_dtype(op, "known_visits", known_visits, codes.int32);
  check_vector(op, "known_visits", known_visits);
  check_length(op, "known_visits", known_visits, n);
  check_same_device(op, "known_visits", known_visits, "records", records);
}

}  // namespace

std::tuple<Tensor, Tensor> changed_rows(const Tensor& records, const Tensor& known_visits) {
  constexpr auto* op = "changed_rows";
  const Record* data = records_of(op, records);
  const int64_t n = records.size(0);
  CHECK_VALUE(n <= kMaxSamples, op, ": records must have fewer than 2**32 rows, got ", n);
  check_known(op, known_visits, n, records);
  const Contiguous known = known_visits;
  const int64_t stride = 1;
  Tensor changed = n <= kMostReused
                       ? empty_reused({&n, 1}, {&stride, 1}, codes.int64, records.device())
                       : empty_strided({&n, 1}, {&stride, 1}, codes.int64, records.device());
  Tensor count = empty_vector(1, codes.int64, records.device());
  run_on(records.device(),
         ChangedRows{data, reinterpret_cast<const uint32_t*>(known->data<int32_t>()), n,
                     changed.mutable_data<int64_t>(), count.mutable_data<int64_t>()});
  return {std::move(changed), std::move(count)};
}

Tensor write_newer(Tensor& scores, Tensor& records, Tensor& known_visits, const Tensor& index,
                   const Tensor& new_scores, const Tensor& new_records, bool wins_ties) {
  constexpr auto* op = "write_newer";
  const int64_t n = check_samples(op, "scores", scores, codes.float32);
  check_written(op, "scores", scores);
  check_written(op, "records", records);
  records_of(op, records);
  CHECK_VALUE(records.size(0) == n, op, ": records must have shape [", n, ", 4], got ",
              records.sizes());
  check_same_device(op, "records", records, "scores", scores);
  check_known(op, known_visits, n, records);
  check_written(op, "known_visits", known_visits);
  check_dtype(op, "index", index, codes.int32);
  check_vector(op, "index", index);
  check_same_device(op, "index", index, "scores", scores);
  const Contiguous where = index;
  const int64_t count = where->numel();
  check_dtype(op, "new_scores", new_scores, codes.float32);
  check_vector(op, "new_scores", new_scores);
  check_length(op, "new_scores", new_scores, count);
  check_same_device(op, "new_scores", new_scores, "scores", scores);
  const Record* from = rows_of<Record>(op, "new_records", new_records);
  CHECK_VALUE(new_records.size(0) == count, op, ": new_records must have shape [", count,
              ", 4], got ", new_records.sizes());
  check_same_device(op, "new_records", new_records, "scores", scores);
  const Contiguous values = new_scores;
  Tensor is_written = empty_vector(count, codes.boolean, scores.device());
  auto* written = reinterpret_cast<Record*>(records.mutable_data<int32_t>());
  run_on(
      scores.device(),
      WriteNewer{scores.mutable_data<float>(), written, n,
                 reinterpret_cast<const uint32_t*>(where->data<int32_t>()), values->data<float>(),
                 from, reinterpret_cast<uint32_t*>(known_visits.mutable_data<int32_t>()), count,
                 wins_ties, is_written.mutable_data<bool>()});
  return is_written;
}

}  // namespace dynloader
