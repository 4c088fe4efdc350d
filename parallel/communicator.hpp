#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

enum class ReduceOp : std::uint8_t { kSum, kMax };

enum class Collective : std::uint8_t { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kBroadcast, kBarrier };
inline constexpr std::size_t kNumCollectives = 6;
[[nodiscard]] std::string_view name_of(Collective verb);

/// What a rank has asked of one communicator. Bytes are the payload that a ring or pairwise exchange makes this rank
/// send: all-gather (n-1)/n of the result (uneven: own count times n-1), reduce-scatter the input less the own part,
/// all-reduce both, all-to-all what goes to others, broadcast the buffer on the root.
struct CollectiveCount {
  std::int64_t calls = 0;
  std::int64_t bytes = 0;
};

/// A set of ranks that exchange data. Typed and checked outside, untyped and virtual inside (`do_...`).
///
/// Contract of every verb: all ranks of the group call it in the same order with the same dtype and matching sizes;
/// blocking on the stream. Sums are made by us in rank order (float32 and double in their own type, bfloat16 in
/// float32, rounded once), so every rank ends with the same bits and repeated runs agree; the transport never adds.
/// Failures throw Error(kCommunication) that names verb, group and rank.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }
  [[nodiscard]] const std::string& name() const { return name_; }

  /// buffer = reduction over ranks. T in {float, double, int64, BFloat16}.
  template <class T>
  void all_reduce(const Stream& stream, VectorView<T> buffer, ReduceOp op = ReduceOp::kSum) {
    count_all_reduce(buffer.size, sizeof(T));
    do_all_reduce(stream, buffer.data, buffer.size, dtype_of<T>, op);
  }
  /// output = the ranks' inputs one behind the other; `counts[r]` elements from rank r (uneven and zero allowed).
  /// input.size == counts[rank], output.size == sum of counts. input may be its own place inside output.
  template <class T>
  void all_gather(const Stream& stream, VectorView<const T> input, VectorView<T> output,
                  std::span<const std::int64_t> counts) {
    check_gather(input.size, output.size, counts);
    record(Collective::kAllGather, input.size * (size_ - 1), sizeof(T));
    do_all_gather(stream, input.data, output.data, counts, dtype_of<T>);
  }
  /// The same with equal counts.
  template <class T>
  void all_gather(const Stream& stream, VectorView<const T> input, VectorView<T> output) {
    const std::vector<std::int64_t> counts(static_cast<std::size_t>(size_), input.size);
    all_gather<T>(stream, input, output, counts);
  }
  /// output = this rank's part (counts[rank] elements) of the element-wise sum of all inputs.
  /// input.size == sum of counts. T in {float, double, BFloat16}. output may be its own place inside input.
  template <class T>
  void reduce_scatter(const Stream& stream, VectorView<const T> input, VectorView<T> output,
                      std::span<const std::int64_t> counts) {
    check_gather(output.size, input.size, counts);
    record(Collective::kReduceScatter, input.size - output.size, sizeof(T));
    do_reduce_scatter(stream, input.data, output.data, counts, dtype_of<T>);
  }
  /// send holds send_counts[r] elements for each rank r in order; receive gets receive_counts[r] from each rank r.
  template <class T>
  void all_to_all(const Stream& stream, VectorView<const T> send, std::span<const std::int64_t> send_counts,
                  VectorView<T> receive, std::span<const std::int64_t> receive_counts) {
    check_exchange(send.size, send_counts, receive.size, receive_counts);
    record(Collective::kAllToAll, send.size - send_counts[static_cast<std::size_t>(rank_)], sizeof(T));
    do_all_to_all(stream, send.data, send_counts, receive.data, receive_counts, dtype_of<T>);
  }
  template <class T>
  void broadcast(const Stream& stream, VectorView<T> buffer, int root) {
    check_root(root);
    record(Collective::kBroadcast, rank_ == root && size_ > 1 ? buffer.size : 0, sizeof(T));
    do_broadcast(stream, buffer.data, buffer.size, dtype_of<T>, root);
  }
  void barrier() {
    record(Collective::kBarrier, 0, 0);
    do_barrier();
  }

  /// Ranks with the same colour form a new group, ordered by (key, rank). Collective over this group.
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key, std::string name) {
    return do_split(color, key, std::move(name));
  }
  /// Ends every rank of the job with this exit code; for use when this rank has failed and peers may be waiting.
  /// Transports inside one process make the peers' pending and later calls throw instead.
  virtual void abort(int exit_code) noexcept = 0;

  [[nodiscard]] CollectiveCount count(Collective verb) const { return counts_[static_cast<std::size_t>(verb)]; }
  void reset_counts() { counts_ = {}; }

 protected:
  Communicator(int rank, int size, std::string name) : rank_(rank), size_(size), name_(std::move(name)) {}

  virtual void do_all_reduce(const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) = 0;
  virtual void do_all_gather(const Stream& stream, const void* input, void* output,
                             std::span<const std::int64_t> counts, DType dtype) = 0;
  virtual void do_reduce_scatter(const Stream& stream, const void* input, void* output,
                                 std::span<const std::int64_t> counts, DType dtype) = 0;
  virtual void do_all_to_all(const Stream& stream, const void* send, std::span<const std::int64_t> send_counts,
                             void* receive, std::span<const std::int64_t> receive_counts, DType dtype) = 0;
  virtual void do_broadcast(const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) = 0;
  virtual void do_barrier() = 0;
  virtual std::unique_ptr<Communicator> do_split(int color, int key, std::string name) = 0;

 private:
  void record(Collective verb, std::int64_t elements, std::size_t element_size) {
    auto& entry = counts_[static_cast<std::size_t>(verb)];
    ++entry.calls;
    entry.bytes += elements * static_cast<std::int64_t>(element_size);
  }
  void count_all_reduce(std::int64_t elements, std::size_t element_size);
  void check_root(int root) const;
  void check_gather(std::int64_t own, std::int64_t total, std::span<const std::int64_t> counts) const;
  void check_exchange(std::int64_t send, std::span<const std::int64_t> send_counts, std::int64_t receive,
                      std::span<const std::int64_t> receive_counts) const;

  int rank_;
  int size_;
  std::string name_;
  std::array<CollectiveCount, kNumCollectives> counts_{};
};

}  // namespace reprise
