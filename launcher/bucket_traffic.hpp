#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/parameter.hpp"
#include "core/stream_event.hpp"
#include "launcher/session.hpp"
#include "optimizer/optimizer.hpp"

namespace reprise {

/// The optimizer's traffic over dp, bucket by bucket and hidden behind the layers: a bucket's reduction starts when the
/// last micro-batch's backward has left its gradients, and its all-gather need only be done when the next forward reads
/// its parameters. On a GPU both run on the session's communication queue, and the two queues wait for each other by
/// events. On a CPU, and with `overlap` false, everything is done in line on the one stream. Bits are the same.
///
/// Every dp rank asks for the same collectives in the same order, also one that has nothing to train: buckets are
/// reduced from the last to the first, and whatever no backward reports is reduced by finish_gradients.
template <class T>
class BucketTraffic {
 public:
  /// `parameters` are the optimizer's.
  BucketTraffic(Session& session, const ParameterSet<T>& parameters, Optimizer<T>& optimizer, bool overlap);

  /// In the last micro-batch's backward, by falling indices: nothing is added to the gradients of [first, last) any
  /// more by what the stream has been asked for.
  void gradients_ready(std::int64_t first, std::int64_t last);
  /// After the last micro-batch: reduces what is left. The stream waits for all reductions.
  void finish_gradients();

  /// After an update that was not skipped: all-gathers of all buckets.
  void start_parameters();
  /// Later work of the stream waits for the parameters [first, last).
  void wait_for_parameters(std::int64_t first, std::int64_t last);
  void wait_for_all_parameters();

 private:
  [[nodiscard]] Context context() { return overlaps_ ? session_.communication() : session_.context(); }
  void reduce_from(std::int64_t first);
  void wait_for_bucket(std::size_t bucket);

  Session& session_;
  Optimizer<T>& optimizer_;
  bool overlaps_;
  std::vector<std::int64_t> bucket_of_;                 // by parameter
  std::vector<std::int64_t> first_parameter_;           // by bucket, its lowest
  std::vector<std::int64_t> copies_, others_;           // buckets with and without sum_over_tp
  std::unique_ptr<StreamEvent> event_;                  // from queue to queue
  std::vector<std::unique_ptr<StreamEvent>> gathered_;  // by bucket
  std::vector<bool> is_awaited_;                        // by bucket: its all-gather is under way for all we know
  std::int64_t ready_from_ = 0;                         // parameters from here on are ready
  std::size_t reduced_ = 0;                             // of others_, from the back
};

}  // namespace reprise
