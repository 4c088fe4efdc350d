#include "parallel/nccl_communicator.hpp"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/buffer.hpp"
#include "core/error.hpp"
#include "core/trace.hpp"
#include "parallel/nccl_group.hpp"
#include "parallel/nccl_kernels.hpp"
#include "parallel/shard.hpp"
#include "parallel/untyped.hpp"

namespace reprise {

namespace {

using detail::at, detail::bytes_of, detail::copy_elements, detail::Counts, detail::offsets_of;

constexpr std::int64_t kSmallBytes = 1 << 20;  // all ranks' buffers together: one exchange is quicker than two
constexpr std::int64_t kAlignment = 16;

std::size_t wire_bytes(std::int64_t count, DType dtype) {
  return static_cast<std::size_t>(bytes_of(count, dtype));
}

/// For NCCL's own sums; elsewhere elements are moved as bytes.
ncclDataType_t sum_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return ncclFloat32;
    case DType::kFloat64: return ncclFloat64;
    case DType::kBFloat16: return ncclBfloat16;
    case DType::kInt64: return ncclInt64;
    default: REPRISE_CHECK(false, "{} cannot be reduced over ranks", name_of(dtype));
  }
  return ncclInt64;
}

bool are_equal(Counts counts) {
  return std::all_of(counts.begin(), counts.end(), [&](std::int64_t count) { return count == counts[0]; });
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> owned, Communicator& bootstrap, const Stream& stream,
                   std::shared_ptr<NcclWatch> watch)
      : Communicator(bootstrap.rank(), bootstrap.size(), bootstrap.name()),
        owned_(std::move(owned)),
        bootstrap_(bootstrap),
        home_(stream),
        watch_(std::move(watch)),
        is_alone_(size() == 1 && watch_->options().copies_alone) {
    for (std::size_t verb = 0; verb < kNumCollectives; ++verb) {
      labels_[verb] = fmt::format("{} {}", name(), name_of(static_cast<Collective>(verb)));
    }
    if (!is_alone_) group_ = std::make_unique<NcclGroup>(watch_, bootstrap_, home_.cuda());
  }

  void abort(int exit_code) noexcept override {
    try {
      watch_->fail(fmt::format("[{}] rank {} aborted the job with exit code {}", name(), rank(), exit_code));
    } catch (...) {  // the peers must hear of it all the same
    }
    bootstrap_.abort(exit_code);
  }

 protected:
  void do_all_reduce(const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) override {
    if (stream.is_cpu()) return untyped::all_reduce(bootstrap_, stream, buffer, count, dtype, op);
    if (is_alone_) return;
    run(Collective::kAllReduce, count, stream, dtype, [&](const CudaStream& cuda) {
      if (watch_->options().native_sums && op == ReduceOp::kSum) {
        return exchange(cuda, count, [&](NcclGroup::Calls& calls) {
          calls(ncclAllReduce(buffer, buffer, static_cast<std::size_t>(count), sum_type(dtype), ncclSum, calls.comm,
                              calls.stream));
        });
      }
      if (bytes_of(count, dtype) * size() <= kSmallBytes) return reduce_gathered(cuda, buffer, count, dtype, op);
      std::vector<std::int64_t> counts;
      for (int r = 0; r < size(); ++r) counts.push_back(even_shard(count, size(), r).size());
      std::byte* const mine = at(buffer, even_shard(count, size(), rank()).begin, dtype);
      scatter_sums(cuda, buffer, mine, counts, dtype, op);
      gather(stream, mine, buffer, counts, dtype);
    });
  }

  void do_all_gather(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    if (stream.is_cpu()) return untyped::all_gather(bootstrap_, stream, input, output, counts, dtype);
    if (is_alone_) return copy_elements(stream, input, output, counts[0], dtype);
    run(Collective::kAllGather, offsets_of(counts).back(), stream, dtype,
        [&](const CudaStream&) { gather(stream, input, output, counts, dtype); });
  }

  void do_reduce_scatter(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    if (stream.is_cpu()) return untyped::reduce_scatter(bootstrap_, stream, input, output, counts, dtype);
    if (is_alone_) return copy_elements(stream, input, output, counts[0], dtype);
    run(Collective::kReduceScatter, offsets_of(counts).back(), stream, dtype, [&](const CudaStream& cuda) {
      if (watch_->options().native_sums) {
        native_reduce_scatter(cuda, input, output, counts, dtype);
      } else {
        scatter_sums(cuda, input, output, counts, dtype, ReduceOp::kSum);
      }
    });
  }

  void do_all_to_all(const Stream& stream, const void* send, Counts send_counts, void* receive, Counts receive_counts,
                     DType dtype) override {
    if (stream.is_cpu()) {
      return untyped::all_to_all(bootstrap_, stream, send, send_counts, receive, receive_counts, dtype);
    }
    const auto mine = static_cast<std::size_t>(rank());
    require(send_counts[mine] == receive_counts[mine], ErrorKind::kCommunication,
            "[{}] rank {} in all_to_all: sends {} elements to itself and expects {}", name(), rank(), send_counts[mine],
            receive_counts[mine]);
    if (is_alone_) return copy_elements(stream, send, receive, send_counts[0], dtype);
    const auto sent = offsets_of(send_counts), received = offsets_of(receive_counts);
    run(Collective::kAllToAll, sent.back(), stream, dtype, [&](const CudaStream& cuda) {
      copy_elements(stream, at(send, sent[mine], dtype), at(receive, received[mine], dtype), send_counts[mine], dtype);
      exchange_pairs(
          cuda, dtype,
          [&](std::size_t to) {
            return Part{at(send, sent[to], dtype), send_counts[to]};
          },
          [&](std::size_t from) {
            return Place{at(receive, received[from], dtype), receive_counts[from]};
          });
    });
  }

  void do_broadcast(const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) override {
    if (stream.is_cpu()) return untyped::broadcast(bootstrap_, stream, buffer, count, dtype, root);
    if (is_alone_) return;
    run(Collective::kBroadcast, count, stream, dtype, [&](const CudaStream& cuda) {
      exchange(cuda, count, [&](NcclGroup::Calls& calls) {
        calls(ncclBroadcast(buffer, buffer, wire_bytes(count, dtype), ncclUint8, root, calls.comm, calls.stream));
      });
    });
  }

  void do_barrier() override { bootstrap_.barrier(); }

  std::unique_ptr<Communicator> do_split(int color, int key, std::string name) override {
    auto part = bootstrap_.split(color, key, std::move(name));
    Communicator& transport = *part;
    return std::make_unique<NcclCommunicator>(std::move(part), transport, home_, watch_);
  }

 private:
  struct Part {
    const void* data;
    std::int64_t count;
  };
  struct Place {
    void* data;
    std::int64_t count;
  };

  template <class Body>
  void run(Collective verb, std::int64_t count, const Stream& stream, DType dtype, const Body& body) {
    const TraceRange range(labels_[static_cast<std::size_t>(verb)].c_str());
    const CudaStream& cuda = stream.cuda();
    group_->run(verb, count, dtype, cuda, [&] { body(cuda); });
  }
  /// Nothing to move on any rank: nothing to ask for.
  template <class Body>
  void exchange(const CudaStream& stream, std::int64_t count, const Body& calls) {
    if (count > 0) group_->exchange(stream, calls);
  }

  /// part_to(r) goes to every other rank r, place_from(r) receives what comes from it.
  template <class PartTo, class PlaceFrom>
  void exchange_pairs(const CudaStream& stream, DType dtype, const PartTo& part_to, const PlaceFrom& place_from) {
    std::int64_t moved = 0;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      moved += part_to(static_cast<std::size_t>(r)).count + place_from(static_cast<std::size_t>(r)).count;
    }
    exchange(stream, moved, [&](NcclGroup::Calls& calls) {
      for (int step = 1; step < size(); ++step) {
        const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
        const Part part = part_to(static_cast<std::size_t>(to));
        const Place place = place_from(static_cast<std::size_t>(from));
        if (part.count > 0) {
          calls(ncclSend(part.data, wire_bytes(part.count, dtype), ncclUint8, to, calls.comm, calls.stream));
        }
        if (place.count > 0) {
          calls(ncclRecv(place.data, wire_bytes(place.count, dtype), ncclUint8, from, calls.comm, calls.stream));
        }
      }
    });
  }

  void gather(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) {
    const auto offsets = offsets_of(counts);
    const auto mine = static_cast<std::size_t>(rank());
    if (are_equal(counts)) {
      return exchange(stream.cuda(), counts[0], [&](NcclGroup::Calls& calls) {
        calls(ncclAllGather(input, output, wire_bytes(counts[0], dtype), ncclUint8, calls.comm, calls.stream));
      });
    }
    copy_elements(stream, input, at(output, offsets[mine], dtype), counts[mine], dtype);
    exchange_pairs(
        stream.cuda(), dtype,
        [&](std::size_t) {
          return Part{input, counts[mine]};
        },
        [&](std::size_t from) {
          return Place{at(output, offsets[from], dtype), counts[from]};
        });
  }

  /// Few numbers: everyone gets everything and sums it.
  void reduce_gathered(const CudaStream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) {
    if (count == 0) return;
    void* const all = scratch(stream, bytes_of(count * size(), dtype));
    group_->exchange(stream, [&](NcclGroup::Calls& calls) {
      calls(ncclAllGather(buffer, all, wire_bytes(count, dtype), ncclUint8, calls.comm, calls.stream));
    });
    reduce_in_rank_order(stream, {.peers = all, .stride = count, .rank = size(), .size = size()}, buffer, count, dtype,
                         op);
  }

  /// output = the reduction of all ranks' parts `rank()` of input, in rounds of bounded scratch. In round k every rank
  /// sends piece k of each peer's part; pieces have the same length everywhere, so both ends agree on every transfer.
  void scatter_sums(const CudaStream& stream, const void* input, void* output, Counts counts, DType dtype,
                    ReduceOp op) {
    const auto offsets = offsets_of(counts);
    const auto mine = static_cast<std::size_t>(rank());
    const std::int64_t peers = std::max(1, size() - 1), aligned = kAlignment / bytes_of(1, dtype);
    const auto piece =
        std::max<std::int64_t>(aligned, watch_->options().scratch_bytes / (peers * bytes_of(aligned, dtype)) * aligned);
    const auto longest = *std::max_element(counts.begin(), counts.end());
    const auto stride = (std::min(piece, counts[mine]) + aligned - 1) / aligned * aligned;
    void* const arriving = scratch(stream, bytes_of(stride * peers, dtype));
    for (std::int64_t begin = 0; begin < longest; begin += piece) {
      const auto in_round = [&](std::size_t r) { return std::clamp<std::int64_t>(counts[r] - begin, 0, piece); };
      const auto slot = [&](std::size_t r) { return static_cast<std::int64_t>(r < mine ? r : r - 1); };
      exchange_pairs(
          stream, dtype,
          [&](std::size_t to) {
            return Part{at(input, offsets[to] + begin, dtype), in_round(to)};
          },
          [&](std::size_t from) {
            return Place{at(arriving, slot(from) * stride, dtype), in_round(mine)};
          });
      const RankAddends addends{.own = at(input, offsets[mine] + begin, dtype),
                                .peers = arriving,
                                .stride = stride,
                                .rank = rank(),
                                .size = size()};
      reduce_in_rank_order(stream, addends, at(output, begin, dtype), in_round(mine), dtype, op);
    }
  }

  void native_reduce_scatter(const CudaStream& stream, const void* input, void* output, Counts counts, DType dtype) {
    const auto offsets = offsets_of(counts);
    exchange(stream, offsets.back(), [&](NcclGroup::Calls& calls) {
      if (are_equal(counts)) {
        calls(ncclReduceScatter(input, output, static_cast<std::size_t>(counts[0]), sum_type(dtype), ncclSum,
                                calls.comm, calls.stream));
        return;
      }
      for (int root = 0; root < size(); ++root) {
        const auto index = static_cast<std::size_t>(root);
        if (counts[index] == 0) continue;
        calls(ncclReduce(at(input, offsets[index], dtype), root == rank() ? output : nullptr,
                         static_cast<std::size_t>(counts[index]), sum_type(dtype), ncclSum, root, calls.comm,
                         calls.stream));
      }
    });
  }

  /// Device memory for `stream`'s work that is kept from call to call; collectives of a group never overlap.
  void* scratch(const CudaStream& stream, std::int64_t bytes) {
    if (scratch_.size() < bytes) {
      const CudaStream& home = home_.cuda();
      group_->make_wait(home);  // for the last use of what is freed
      scratch_ = {};            // before, so that both are never held together
      scratch_ = Buffer<std::byte>(home_, bytes, "the scratch of collectives");
      CudaEvent is_there;
      is_there.record(home);
      is_there.make_wait(stream);
    }
    return scratch_.view().data;
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& bootstrap_;
  const Stream home_;
  const std::shared_ptr<NcclWatch> watch_;
  const bool is_alone_;
  std::array<std::string, kNumCollectives> labels_;
  Buffer<std::byte> scratch_;         // freed when the group has left
  std::unique_ptr<NcclGroup> group_;  // null where this rank is alone
};

std::unique_ptr<Communicator> make(std::unique_ptr<Communicator> owned, Communicator& bootstrap, const Stream& stream,
                                   const NcclOptions& options) {
  require(!stream.is_cpu(), ErrorKind::kUsage,
          "[{}] NCCL exchanges GPU memory, and this rank computes on the CPU: use parallel.transport = \"mpi\"",
          bootstrap.name());
  REPRISE_CHECK(options.deadline_seconds > 0.0 && options.scratch_bytes > 0, "a deadline of {} s, {} bytes of scratch",
                options.deadline_seconds, options.scratch_bytes);
  return std::make_unique<NcclCommunicator>(std::move(owned), bootstrap, stream, std::make_shared<NcclWatch>(options));
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> bootstrap, const Stream& stream,
                                                     const NcclOptions& options) {
  Communicator& transport = *bootstrap;
  return make(std::move(bootstrap), transport, stream, options);
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, const Stream& stream,
                                                     const NcclOptions& options) {
  return make(nullptr, bootstrap, stream, options);
}

std::string nccl_version() {
  int code = 0;
  if (ncclGetVersion(&code) != ncclSuccess) return {};
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

}  // namespace reprise
