#include "parallel/staged_communicator.hpp"

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/trace.hpp"
#include "core/transfer.hpp"
#include "parallel/elements.hpp"

namespace reprise {

namespace {

using detail::Counts, detail::offsets_of, detail::with_type_of;

template <class T>
VectorView<T> view_of(void* data, std::int64_t count) {
  return {static_cast<T*>(data), count};
}
template <class T>
VectorView<const T> view_of(const void* data, std::int64_t count) {
  return {static_cast<const T*>(data), count};
}

/// Page-locked memory that is kept from call to call.
class Staging {
 public:
  template <class T>
  VectorView<T> take(const Stream& stream, std::int64_t count) {
    const auto bytes = count * static_cast<std::int64_t>(sizeof(T));
    if (buffer_.size() < bytes) {
      buffer_ = {};  // before, so that both are never held together
      buffer_ = HostBuffer<std::byte>(stream, bytes, "the staging of collectives");
    }
    return {reinterpret_cast<T*>(buffer_.view().data), count};
  }

 private:
  HostBuffer<std::byte> buffer_;
};

/// The ranks' parts [begin, begin + piece) of a longer exchange.
struct Round {
  Round(Counts whole, std::int64_t begin, std::int64_t piece) {
    for (const auto count : whole) counts.push_back(std::clamp<std::int64_t>(count - begin, 0, piece));
    offsets = offsets_of(counts);
  }
  std::vector<std::int64_t> counts, offsets;
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> owned, Communicator& inner, const StagingOptions& options)
      : Communicator(inner.rank(), inner.size(), inner.name()),
        owned_(std::move(owned)),
        inner_(inner),
        options_(options),
        host_(options.host) {
    REPRISE_CHECK(options.bytes > 0, "[{}] staging of {} bytes", name(), options.bytes);
  }

  void abort(int exit_code) noexcept override { inner_.abort(exit_code); }

 protected:
  void do_all_reduce(const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) override {
    with_type_of(dtype, [&](auto type) {
      using T = decltype(type);
      const auto values = view_of<T>(buffer, count);
      if (stream.is_cpu()) return inner_.all_reduce<T>(stream, values, op);
      if (size() == 1) return;
      const TraceRange range("staged all_reduce");
      in_pieces<T>(count, [&](std::int64_t begin, std::int64_t size) {
        const auto staged = outgoing_.take<T>(stream, size);
        to_host<T>("all_reduce", stream, values.slice(begin, size), staged);
        inner_.all_reduce<T>(host_, staged, op);
        to_device<T>("all_reduce", stream, staged, values.slice(begin, size));
      });
      wait("all_reduce", stream);
    });
  }

  void do_all_gather(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    with_type_of(dtype, [&](auto type) {
      using T = decltype(type);
      const auto mine = static_cast<std::size_t>(rank());
      const auto offsets = offsets_of(counts);
      const auto own = view_of<T>(input, counts[mine]);
      const auto whole = view_of<T>(output, offsets.back());
      if (stream.is_cpu()) return inner_.all_gather<T>(stream, own, whole, counts);
      if (size() == 1) return copy_own("all_gather", stream, input, output, counts[0], dtype);
      const TraceRange range("staged all_gather");
      in_rounds<T>(counts, [&](std::int64_t begin, const Round& round, bool is_only) {
        const auto staged = outgoing_.take<T>(stream, round.offsets.back());
        const auto staged_own = staged.slice(round.offsets[mine], round.counts[mine]);
        to_host<T>("all_gather", stream, own.slice(begin_in(begin, own.size), staged_own.size), staged_own);
        inner_.all_gather<T>(host_, staged_own, staged, round.counts);
        if (is_only) return to_device<T>("all_gather", stream, staged, whole);
        for_parts(counts, offsets, round, begin, [&](std::int64_t in_round, std::int64_t in_whole, std::int64_t size) {
          to_device<T>("all_gather", stream, staged.slice(in_round, size), whole.slice(in_whole, size));
        });
      });
      wait("all_gather", stream);
    });
  }

  void do_reduce_scatter(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    with_type_of(dtype, [&](auto type) {
      using T = decltype(type);
      const auto mine = static_cast<std::size_t>(rank());
      const auto offsets = offsets_of(counts);
      const auto whole = view_of<T>(input, offsets.back());
      const auto own = view_of<T>(output, counts[mine]);
      if (stream.is_cpu()) return inner_.reduce_scatter<T>(stream, whole, own, counts);
      if (size() == 1) return copy_own("reduce_scatter", stream, input, output, counts[0], dtype);
      const TraceRange range("staged reduce_scatter");
      in_rounds<T>(counts, [&](std::int64_t begin, const Round& round, bool is_only) {
        const auto staged = outgoing_.take<T>(stream, round.offsets.back());
        if (is_only) {
          start_to_host<T>("reduce_scatter", stream, whole, staged);
        } else {
          for_parts(
              counts, offsets, round, begin, [&](std::int64_t in_round, std::int64_t in_whole, std::int64_t size) {
                start_to_host<T>("reduce_scatter", stream, whole.slice(in_whole, size), staged.slice(in_round, size));
              });
        }
        wait("reduce_scatter", stream);
        const auto staged_own = staged.slice(round.offsets[mine], round.counts[mine]);
        inner_.reduce_scatter<T>(host_, staged, staged_own, round.counts);
        to_device<T>("reduce_scatter", stream, staged_own, own.slice(begin_in(begin, own.size), staged_own.size));
      });
      wait("reduce_scatter", stream);
    });
  }

  void do_all_to_all(const Stream& stream, const void* send, Counts send_counts, void* receive, Counts receive_counts,
                     DType dtype) override {
    with_type_of(dtype, [&](auto type) {
      using T = decltype(type);
      const auto sent = view_of<T>(send, offsets_of(send_counts).back());
      const auto received = view_of<T>(receive, offsets_of(receive_counts).back());
      if (stream.is_cpu()) return inner_.all_to_all<T>(stream, sent, send_counts, received, receive_counts);
      if (size() == 1) {
        require(sent.size == received.size, ErrorKind::kCommunication,
                "[{}] rank 0 in all_to_all: sends {} elements to itself and expects {}", name(), sent.size,
                received.size);
        return copy_own("all_to_all", stream, send, receive, sent.size, dtype);
      }
      const TraceRange range("staged all_to_all");
      const auto staged = outgoing_.take<T>(stream, sent.size), arriving = incoming_.take<T>(stream, received.size);
      to_host<T>("all_to_all", stream, sent, staged);
      inner_.all_to_all<T>(host_, staged, send_counts, arriving, receive_counts);
      to_device<T>("all_to_all", stream, arriving, received);
      wait("all_to_all", stream);
    });
  }

  void do_broadcast(const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) override {
    with_type_of(dtype, [&](auto type) {
      using T = decltype(type);
      const auto values = view_of<T>(buffer, count);
      if (stream.is_cpu()) return inner_.broadcast<T>(stream, values, root);
      if (size() == 1) return;
      const TraceRange range("staged broadcast");
      in_pieces<T>(count, [&](std::int64_t begin, std::int64_t size) {
        const auto staged = outgoing_.take<T>(stream, size);
        if (rank() == root) {
          to_host<T>("broadcast", stream, values.slice(begin, size), staged);
        } else {
          wait("broadcast", stream);  // for the copies of the round before
        }
        inner_.broadcast<T>(host_, staged, root);
        if (rank() != root) to_device<T>("broadcast", stream, staged, values.slice(begin, size));
      });
      wait("broadcast", stream);
    });
  }

  void do_barrier() override { inner_.barrier(); }

  std::unique_ptr<Communicator> do_split(int color, int key, std::string name) override {
    return make_staged_communicator(inner_.split(color, key, std::move(name)), options_);
  }

 private:
  /// body(begin, size) for pieces of [0, count); once, with nothing, when count is 0: the peers call as well.
  template <class T, class Body>
  void in_pieces(std::int64_t count, const Body& body) const {
    const auto piece = std::max<std::int64_t>(1, options_.bytes / static_cast<std::int64_t>(sizeof(T)));
    std::int64_t begin = 0;
    do {
      body(begin, std::min(piece, count - begin));
      begin += piece;
    } while (begin < count);
  }

  /// body(begin, round, is_only): in each round every rank's part gives a piece of the same length, less at its end.
  template <class T, class Body>
  void in_rounds(Counts counts, const Body& body) const {
    const auto capacity = options_.bytes / static_cast<std::int64_t>(sizeof(T));
    const auto longest = *std::max_element(counts.begin(), counts.end());
    const bool is_only = offsets_of(counts).back() <= capacity;
    const auto piece = is_only ? std::max<std::int64_t>(1, longest) : std::max<std::int64_t>(1, capacity / size());
    std::int64_t begin = 0;
    do {
      body(begin, Round(counts, begin, piece), is_only);
      begin += piece;
    } while (begin < longest);
  }
  /// body(offset in the round, offset in the whole, size) for the parts that the round has something of.
  template <class Body>
  static void for_parts(Counts counts, const std::vector<std::int64_t>& offsets, const Round& round, std::int64_t begin,
                        const Body& body) {
    for (std::size_t r = 0; r < counts.size(); ++r) {
      if (round.counts[r] > 0) body(round.offsets[r], offsets[r] + begin, round.counts[r]);
    }
  }
  /// Where a round begins in a part that may already have come to its end.
  static std::int64_t begin_in(std::int64_t begin, std::int64_t size) { return std::min(begin, size); }

  template <class T>
  void start_to_host(const char* verb, const Stream& stream, VectorView<const T> device, VectorView<T> host) const {
    named(verb, [&] { start_copy_to_host<T>(stream, device, host); });
  }
  template <class T>
  void to_host(const char* verb, const Stream& stream, VectorView<const T> device, VectorView<T> host) const {
    named(verb, [&] { copy_to_host<T>(stream, device, host); });
  }
  template <class T>
  void to_device(const char* verb, const Stream& stream, VectorView<const T> host, VectorView<T> device) const {
    named(verb, [&] { copy_to_device<T>(stream, host, device); });
  }
  void wait(const char* verb, const Stream& stream) const {
    named(verb, [&] { synchronize(stream); });
  }
  void copy_own(const char* verb, const Stream& stream, const void* from, void* to, std::int64_t count,
                DType dtype) const {
    named(verb, [&] { detail::copy_elements(stream, from, to, count, dtype); });
  }
  /// A failure of the device says where it was met.
  template <class Body>
  void named(const char* verb, const Body& body) const {
    try {
      body();
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("[{}] rank {} in {}: {}", name(), rank(), verb, error.what()));
    }
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  const StagingOptions options_;
  const Stream host_;
  Staging outgoing_, incoming_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> inner,
                                                       const StagingOptions& options) {
  Communicator& transport = *inner;
  return std::make_unique<StagedCommunicator>(std::move(inner), transport, options);
}

std::unique_ptr<Communicator> make_staged_communicator(Communicator& inner, const StagingOptions& options) {
  return std::make_unique<StagedCommunicator>(nullptr, inner, options);
}

}  // namespace reprise
