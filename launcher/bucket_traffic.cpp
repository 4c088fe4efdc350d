#include "launcher/bucket_traffic.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/trace.hpp"

namespace reprise {

template <class T>
BucketTraffic<T>::BucketTraffic(Session& session, const ParameterSet<T>& parameters, Optimizer<T>& optimizer,
                                bool overlap)
    : session_(session),
      optimizer_(optimizer),
      overlaps_(overlap),
      event_(make_stream_event(session.stream())),
      ready_from_(parameters.count()) {
  const FlatLayout& layout = parameters.layout();
  first_parameter_.assign(layout.buckets.size(), parameters.count());
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    const ParameterSlot& slot = layout.slots[static_cast<std::size_t>(p)];
    const auto behind = std::upper_bound(layout.buckets.begin(), layout.buckets.end(), slot.begin,
                                         [](std::int64_t at, const Bucket& bucket) { return at < bucket.end; });
    bucket_of_.push_back(std::min(behind - layout.buckets.begin(), std::ssize(layout.buckets) - 1));
    std::int64_t& first = first_parameter_[static_cast<std::size_t>(bucket_of_.back())];
    first = std::min(first, p);
  }
  for (std::size_t b = 0; b < layout.buckets.size(); ++b) {
    (layout.buckets[b].sum_over_tp ? copies_ : others_).push_back(static_cast<std::int64_t>(b));
    gathered_.push_back(make_stream_event(session.stream()));
  }
  is_awaited_.resize(layout.buckets.size());
}

template <class T>
void BucketTraffic<T>::gradients_ready(std::int64_t first, std::int64_t last) {
  REPRISE_CHECK(last == ready_from_ && first <= last, "gradients [{}, {}) are reported where those from {} on were",
                first, last, ready_from_);
  ready_from_ = first;
  if (overlaps_) reduce_from(first);
}

/// The buckets whose parameters are all among those from `first` on.
template <class T>
void BucketTraffic<T>::reduce_from(std::int64_t first) {
  const Context context = this->context();
  bool waits = false;
  while (reduced_ < others_.size()) {
    const std::int64_t bucket = others_[others_.size() - 1 - reduced_];
    if (first_parameter_[static_cast<std::size_t>(bucket)] < first) return;
    const TraceRange range("reduce");
    if (!waits) wait_for(*event_, session_.stream(), context.stream);
    waits = true;
    optimizer_.reduce_ahead(context, bucket);
    ++reduced_;
  }
}

template <class T>
void BucketTraffic<T>::finish_gradients() {
  const TraceRange range("reduce");
  const Context context = this->context();
  reduce_from(0);
  wait_for(*event_, session_.stream(), context.stream);
  optimizer_.reduce_gradients(context, true);
  wait_for(*event_, context.stream, session_.stream());
  ready_from_ = std::ssize(bucket_of_);
  reduced_ = 0;
}

template <class T>
void BucketTraffic<T>::start_parameters() {
  const TraceRange range("gather");
  const Context context = this->context();
  wait_for(*event_, session_.stream(), context.stream);
  for (const auto* buckets : {&copies_, &others_}) {  // every layer reads copies
    for (const std::int64_t bucket : *buckets) {
      const auto b = static_cast<std::size_t>(bucket);
      optimizer_.gather_parameters(context, bucket);
      gathered_[b]->record(context.stream);
      is_awaited_[b] = true;
    }
  }
}

template <class T>
void BucketTraffic<T>::wait_for_parameters(std::int64_t first, std::int64_t last) {
  for (std::int64_t p = first; p < last; ++p) {
    wait_for_bucket(static_cast<std::size_t>(bucket_of_[static_cast<std::size_t>(p)]));
  }
}

template <class T>
void BucketTraffic<T>::wait_for_all_parameters() {
  for (std::size_t b = 0; b < gathered_.size(); ++b) wait_for_bucket(b);
}

template <class T>
void BucketTraffic<T>::wait_for_bucket(std::size_t bucket) {
  if (!is_awaited_[bucket]) return;
  gathered_[bucket]->make_wait(session_.stream());
  is_awaited_[bucket] = false;
}

template class BucketTraffic<float>;
template class BucketTraffic<BFloat16>;

}  // namespace reprise
