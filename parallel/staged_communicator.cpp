#include "parallel/staged_communicator.hpp"

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/trace.hpp"
#include "core/transfer.hpp"
#include "parallel/untyped.hpp"

namespace reprise {

namespace {

using detail::at, detail::bytes_of, detail::Counts, detail::Direction, detail::offsets_of;

/// Page-locked memory that is kept from call to call.
class Staging {
 public:
  std::byte* take(const Stream& stream, std::int64_t bytes) {
    if (buffer_.size() < bytes) {
      buffer_ = {};  // before, so that both are never held together
      buffer_ = HostBuffer<std::byte>(stream, bytes, "the staging of collectives");
    }
    return buffer_.view().data;
  }

 private:
  HostBuffer<std::byte> buffer_;
};

/// The ranks' parts [begin, begin + piece) of a longer exchange.
struct Round {
  Round(Counts whole, std::int64_t first, std::int64_t piece) : begin(first) {
    for (const auto count : whole) counts.push_back(std::clamp<std::int64_t>(count - begin, 0, piece));
    offsets = offsets_of(counts);
  }
  std::int64_t begin;
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
    if (stream.is_cpu()) return untyped::all_reduce(inner_, stream, buffer, count, dtype, op);
    if (size() == 1) return;
    const Call call(*this, "all_reduce", stream, dtype);
    in_pieces(count, dtype, [&](std::int64_t begin, std::int64_t piece) {
      std::byte* const staged = outgoing_.take(stream, bytes_of(piece, dtype));
      call.copy_out(at(buffer, begin, dtype), staged, piece);
      call.wait();
      untyped::all_reduce(inner_, host_, staged, piece, dtype, op);
      call.copy_in(staged, at(buffer, begin, dtype), piece);
    });
    call.wait();
  }

  void do_all_gather(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    if (stream.is_cpu()) return untyped::all_gather(inner_, stream, input, output, counts, dtype);
    const Call call(*this, "all_gather", stream, dtype);
    if (size() == 1) return call.copy(input, output, counts[0]);
    const auto mine = static_cast<std::size_t>(rank());
    const auto offsets = offsets_of(counts);
    in_rounds(counts, dtype, [&](const Round& round) {
      std::byte* const staged = outgoing_.take(stream, bytes_of(round.offsets.back(), dtype));
      std::byte* const own = at(staged, round.offsets[mine], dtype);
      call.copy_out(at(input, round.begin, dtype), own, round.counts[mine]);
      call.wait();
      untyped::all_gather(inner_, host_, own, staged, round.counts, dtype);
      if (round.offsets == offsets) return call.copy_in(staged, output, offsets.back());
      for (std::size_t r = 0; r < counts.size(); ++r) {
        call.copy_in(at(staged, round.offsets[r], dtype), at(output, offsets[r] + round.begin, dtype), round.counts[r]);
      }
    });
    call.wait();
  }

  void do_reduce_scatter(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    if (stream.is_cpu()) return untyped::reduce_scatter(inner_, stream, input, output, counts, dtype);
    const Call call(*this, "reduce_scatter", stream, dtype);
    if (size() == 1) return call.copy(input, output, counts[0]);
    const auto mine = static_cast<std::size_t>(rank());
    const auto offsets = offsets_of(counts);
    in_rounds(counts, dtype, [&](const Round& round) {
      std::byte* const staged = outgoing_.take(stream, bytes_of(round.offsets.back(), dtype));
      if (round.offsets == offsets) {
        call.copy_out(input, staged, offsets.back());
      } else {
        for (std::size_t r = 0; r < counts.size(); ++r) {
          call.copy_out(at(input, offsets[r] + round.begin, dtype), at(staged, round.offsets[r], dtype),
                        round.counts[r]);
        }
      }
      call.wait();
      std::byte* const own = at(staged, round.offsets[mine], dtype);
      untyped::reduce_scatter(inner_, host_, staged, own, round.counts, dtype);
      call.copy_in(own, at(output, round.begin, dtype), round.counts[mine]);
    });
    call.wait();
  }

  void do_all_to_all(const Stream& stream, const void* send, Counts send_counts, void* receive, Counts receive_counts,
                     DType dtype) override {
    if (stream.is_cpu()) {
      return untyped::all_to_all(inner_, stream, send, send_counts, receive, receive_counts, dtype);
    }
    const Call call(*this, "all_to_all", stream, dtype);
    const auto sent = offsets_of(send_counts).back(), received = offsets_of(receive_counts).back();
    if (size() == 1) {
      require(sent == received, ErrorKind::kCommunication,
              "[{}] rank 0 in all_to_all: sends {} elements to itself and expects {}", name(), sent, received);
      return call.copy(send, receive, sent);
    }
    std::byte* const staged = outgoing_.take(stream, bytes_of(sent, dtype));
    std::byte* const arriving = incoming_.take(stream, bytes_of(received, dtype));
    call.copy_out(send, staged, sent);
    call.wait();
    untyped::all_to_all(inner_, host_, staged, send_counts, arriving, receive_counts, dtype);
    call.copy_in(arriving, receive, received);
    call.wait();
  }

  void do_broadcast(const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) override {
    if (stream.is_cpu()) return untyped::broadcast(inner_, stream, buffer, count, dtype, root);
    if (size() == 1) return;
    const Call call(*this, "broadcast", stream, dtype);
    in_pieces(count, dtype, [&](std::int64_t begin, std::int64_t piece) {
      std::byte* const staged = outgoing_.take(stream, bytes_of(piece, dtype));
      if (rank() == root) call.copy_out(at(buffer, begin, dtype), staged, piece);
      call.wait();  // on the other ranks for the copies of the round before
      untyped::broadcast(inner_, host_, staged, piece, dtype, root);
      if (rank() != root) call.copy_in(staged, at(buffer, begin, dtype), piece);
    });
    call.wait();
  }

  void do_barrier() override { inner_.barrier(); }

  std::unique_ptr<Communicator> do_split(int color, int key, std::string name) override {
    return make_staged_communicator(inner_.split(color, key, std::move(name)), options_);
  }

 private:
  /// The device's side of one call. Failures say where they were met.
  class Call {
   public:
    Call(const StagedCommunicator& owner, const char* verb, const Stream& stream, DType dtype)
        : owner_(owner), verb_(verb), stream_(stream), dtype_(dtype), range_(verb) {}

    void copy_out(const void* device, std::byte* host, std::int64_t count) const {
      move(device, host, count, Direction::kToHost);
    }
    void copy_in(const std::byte* host, void* device, std::int64_t count) const {
      move(host, device, count, Direction::kToDevice);
    }
    void copy(const void* from, void* to, std::int64_t count) const {
      if (from != to) move(from, to, count, Direction::kWithinDevice);
    }
    void wait() const {
      named([&] { synchronize(stream_); });
    }

   private:
    void move(const void* from, void* to, std::int64_t count, Direction direction) const {
      if (count == 0) return;
      named([&] {
        stream_.visit(
            [&](const auto& device) { detail::copy_bytes(device, from, to, bytes_of(count, dtype_), direction); });
      });
    }
    template <class Body>
    void named(const Body& body) const {
      try {
        body();
      } catch (const Error& error) {
        throw Error(error.kind(),
                    fmt::format("[{}] rank {} in {}: {}", owner_.name(), owner_.rank(), verb_, error.what()));
      }
    }

    const StagedCommunicator& owner_;
    const char* verb_;
    const Stream& stream_;
    DType dtype_;
    TraceRange range_;
  };

  /// body(begin, size) for pieces of [0, count); once, with nothing, when count is 0: the peers call as well.
  template <class Body>
  void in_pieces(std::int64_t count, DType dtype, const Body& body) const {
    const auto longest = std::max<std::int64_t>(1, options_.bytes / bytes_of(1, dtype));
    std::int64_t begin = 0;
    do {
      body(begin, std::min(longest, count - begin));
      begin += longest;
    } while (begin < count);
  }

  /// body(round): in each round every rank's part gives a piece of the same length, less or nothing at its end.
  template <class Body>
  void in_rounds(Counts counts, DType dtype, const Body& body) const {
    const auto capacity = options_.bytes / bytes_of(1, dtype);
    const auto longest = *std::max_element(counts.begin(), counts.end());
    const auto piece = std::max<std::int64_t>(1, offsets_of(counts).back() <= capacity ? longest : capacity / size());
    std::int64_t begin = 0;
    do {
      body(Round(counts, begin, piece));
      begin += piece;
    } while (begin < longest);
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
