#include "parallel/mpi_communicator.hpp"

#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

#include "core/error.hpp"
#include "core/math.hpp"
#include "parallel/elements.hpp"
#include "parallel/rank_order.hpp"
#include "parallel/shard.hpp"

namespace reprise {

namespace {

using detail::at, detail::Counts, detail::offsets_of;

constexpr std::int64_t kSmallBytes = 16 << 10;   // all ranks' buffers together: cheaper gathered than scattered
constexpr std::int64_t kScratchBytes = 4 << 20;  // of incoming addends; longer sums go in rounds
constexpr int kTag = 1;

/// Elements are moved, never interpreted: MPI sees unsigned integers of the same width.
MPI_Datatype wire_type(DType dtype) {
  switch (size_of(dtype)) {
    case 1: return MPI_UINT8_T;
    case 2: return MPI_UINT16_T;
    case 4: return MPI_UINT32_T;
    default: return MPI_UINT64_T;
  }
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, int rank, int size, std::string name, std::int64_t max_message)
      : Communicator(rank, size, std::move(name)),
        comm_(comm),
        max_message_(max_message),
        unwinding_at_birth_(std::uncaught_exceptions()) {}

  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    const bool unwinding = std::uncaught_exceptions() > unwinding_at_birth_;
    if (comm_ != MPI_COMM_WORLD && finalized == 0 && !unwinding) MPI_Comm_free(&comm_);
  }

  void abort(int exit_code) noexcept override { MPI_Abort(MPI_COMM_WORLD, exit_code); }

 protected:
  void do_all_reduce(const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) override {
    const auto bytes = count * static_cast<std::int64_t>(size_of(dtype));
    if (bytes * size() <= kSmallBytes) return reduce_gathered(stream, buffer, count, dtype, op);
    std::vector<std::int64_t> counts;
    for (int r = 0; r < size(); ++r) counts.push_back(even_shard(count, size(), r).size());
    std::byte* mine = at(buffer, even_shard(count, size(), rank()).begin, dtype);
    scatter_sums(stream, buffer, mine, counts, dtype, op, "all_reduce");
    gather(mine, buffer, counts, dtype, "all_reduce");
  }

  void do_all_gather(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    check_stream(stream);
    gather(input, output, counts, dtype, "all_gather");
  }

  void do_reduce_scatter(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    scatter_sums(stream, input, output, counts, dtype, ReduceOp::kSum, "reduce_scatter");
  }

  void do_all_to_all(const Stream& stream, const void* send, Counts send_counts, void* receive, Counts receive_counts,
                     DType dtype) override {
    check_stream(stream);
    const auto mine = static_cast<std::size_t>(rank());
    require(send_counts[mine] == receive_counts[mine], ErrorKind::kCommunication,
            "[{}] rank {} in all_to_all: sends {} elements to itself and expects {}", name(), rank(), send_counts[mine],
            receive_counts[mine]);
    const auto send_offsets = offsets_of(send_counts), receive_offsets = offsets_of(receive_counts);
    Requests requests(*this, "all_to_all");
    for (int step = 1; step < size(); ++step) {
      const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
      const auto to_index = static_cast<std::size_t>(to), from_index = static_cast<std::size_t>(from);
      requests.receive(at(receive, receive_offsets[from_index], dtype), receive_counts[from_index], dtype, from);
      requests.send(at(send, send_offsets[to_index], dtype), send_counts[to_index], dtype, to);
    }
    copy(at(send, send_offsets[mine], dtype), at(receive, receive_offsets[mine], dtype), send_counts[mine], dtype);
    requests.wait();
  }

  void do_broadcast(const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) override {
    check_stream(stream);
    for (std::int64_t begin = 0; begin < count; begin += max_message_) {
      const int part = narrow<int>(std::min(max_message_, count - begin));
      check(MPI_Bcast(at(buffer, begin, dtype), part, wire_type(dtype), root, comm_), "broadcast");
    }
  }

  void do_barrier() override { check(MPI_Barrier(comm_), "barrier"); }

  std::unique_ptr<Communicator> do_split(int color, int key, std::string name) override {
    REPRISE_CHECK(color >= 0, "[{}] colour {}", name, color);
    MPI_Comm part = MPI_COMM_NULL;
    check(MPI_Comm_split(comm_, color, key, &part), "split");
    int part_rank = 0, part_size = 0;
    MPI_Comm_rank(part, &part_rank);
    MPI_Comm_size(part, &part_size);
    return std::make_unique<MpiCommunicator>(part, part_rank, part_size, std::move(name), max_message_);
  }

 private:
  /// Sends and receives on their way, cut into messages whose counts MPI's int can hold.
  class Requests {
   public:
    Requests(const MpiCommunicator& owner, std::string_view verb) : owner_(owner), verb_(verb) {}

    void send(const std::byte* data, std::int64_t count, DType dtype, int to) {
      cut(count, [&](std::int64_t begin, int part) {
        return MPI_Isend(at(data, begin, dtype), part, wire_type(dtype), to, kTag, owner_.comm_, next());
      });
    }
    void receive(std::byte* data, std::int64_t count, DType dtype, int from) {
      cut(count, [&](std::int64_t begin, int part) {
        return MPI_Irecv(at(data, begin, dtype), part, wire_type(dtype), from, kTag, owner_.comm_, next());
      });
    }
    /// One by one: OpenMPI 4.1's MPI_Waitall can spin for ever when a request ends with an error before the others.
    void wait() {
      int first_error = MPI_SUCCESS;
      for (MPI_Request& request : requests_) {
        const int code = MPI_Wait(&request, MPI_STATUS_IGNORE);
        if (first_error == MPI_SUCCESS) first_error = code;
      }
      requests_.clear();
      owner_.check(first_error, verb_);
    }

   private:
    template <class Post>
    void cut(std::int64_t count, const Post& post) {
      for (std::int64_t begin = 0; begin < count; begin += owner_.max_message_) {
        owner_.check(post(begin, narrow<int>(std::min(owner_.max_message_, count - begin))), verb_);
      }
    }
    MPI_Request* next() { return &requests_.emplace_back(MPI_REQUEST_NULL); }

    const MpiCommunicator& owner_;
    std::string_view verb_;
    std::vector<MPI_Request> requests_;
  };

  void gather(const void* input, void* output, Counts counts, DType dtype, std::string_view verb) {
    const auto offsets = offsets_of(counts);
    const auto mine = static_cast<std::size_t>(rank());
    copy(at(input, 0, dtype), at(output, offsets[mine], dtype), counts[mine], dtype);
    if (offsets.back() <= max_message_) {
      const std::vector<int> int_counts(counts.begin(), counts.end());
      const std::vector<int> int_offsets(offsets.begin(), offsets.end() - 1);
      check(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, output, int_counts.data(), int_offsets.data(),
                           wire_type(dtype), comm_),
            verb);
      return;
    }
    Requests requests(*this, verb);
    for (int step = 1; step < size(); ++step) {
      const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
      const auto from_index = static_cast<std::size_t>(from);
      requests.receive(at(output, offsets[from_index], dtype), counts[from_index], dtype, from);
      requests.send(at(output, offsets[mine], dtype), counts[mine], dtype, to);
    }
    requests.wait();
  }

  /// Few numbers: everyone gets everything and sums it.
  void reduce_gathered(const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) {
    std::byte* all = scratch(count * size(), dtype);
    gather(buffer, all, std::vector<std::int64_t>(static_cast<std::size_t>(size()), count), dtype, "all_reduce");
    std::vector<const void*> inputs;
    for (int r = 0; r < size(); ++r) inputs.push_back(at(all, r * count, dtype));
    reduce_in_rank_order(stream, inputs, buffer, count, dtype, op);
  }

  /// output = the reduction of all ranks' parts `rank()` of input, in rounds of bounded scratch. In round k every rank
  /// sends piece k of each peer's part; pieces have the same length everywhere, so both ends agree on every message.
  void scatter_sums(const Stream& stream, const void* input, void* output, Counts counts, DType dtype, ReduceOp op,
                    std::string_view verb) {
    const auto offsets = offsets_of(counts);
    const auto mine = static_cast<std::size_t>(rank());
    const auto peers = std::max(1, size() - 1);
    const auto piece = std::max<std::int64_t>(1, kScratchBytes / (peers * static_cast<std::int64_t>(size_of(dtype))));
    const auto longest = *std::max_element(counts.begin(), counts.end());
    std::byte* incoming = scratch(std::min(piece, counts[mine]) * peers, dtype);
    for (std::int64_t begin = 0; begin < longest; begin += piece) {
      const auto part = [&](std::int64_t count) { return std::clamp<std::int64_t>(count - begin, 0, piece); };
      const std::int64_t own = part(counts[mine]);
      std::vector<const void*> inputs(static_cast<std::size_t>(size()));
      inputs[mine] = at(input, offsets[mine] + begin, dtype);
      Requests requests(*this, verb);
      for (int step = 1; step < size(); ++step) {
        const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
        const auto to_index = static_cast<std::size_t>(to);
        std::byte* place = at(incoming, (step - 1) * own, dtype);
        inputs[static_cast<std::size_t>(from)] = place;
        requests.receive(place, own, dtype, from);
        requests.send(at(input, offsets[to_index] + begin, dtype), part(counts[to_index]), dtype, to);
      }
      requests.wait();
      reduce_in_rank_order(stream, inputs, at(output, begin, dtype), own, dtype, op);
    }
  }

  std::byte* scratch(std::int64_t count, DType dtype) {
    const auto bytes = static_cast<std::size_t>(count) * size_of(dtype);
    if (scratch_.size() < bytes) scratch_.resize(bytes);
    return scratch_.data();
  }
  static void copy(const std::byte* from, std::byte* to, std::int64_t count, DType dtype) {
    if (count > 0 && from != to) std::memcpy(to, from, static_cast<std::size_t>(count) * size_of(dtype));
  }
  void check_stream(const Stream& stream) const {
    REPRISE_CHECK(stream.is_cpu(), "[{}] MPI exchanges host memory", name());
  }
  void check(int code, std::string_view verb) const {
    if (code == MPI_SUCCESS) [[likely]]
      return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    fail(ErrorKind::kCommunication, "[{}] rank {} in {}: {}", name(), rank(), verb,
         std::string_view(text, static_cast<std::size_t>(length)));
  }

  MPI_Comm comm_;
  std::int64_t max_message_;
  int unwinding_at_birth_;
  std::vector<std::byte> scratch_;
};

void check_environment(int code, std::string_view what) {
  require(code == MPI_SUCCESS, ErrorKind::kCommunication, "{} failed with code {}", what, code);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) : unwinding_at_birth_(std::uncaught_exceptions()) {
  int provided = 0;
  check_environment(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  check_environment(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  MPI_Comm local = MPI_COMM_NULL;
  check_environment(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local),
                    "MPI_Comm_split_type");
  MPI_Comm_size(local, &local_size_);
  MPI_Comm_rank(local, &local_rank_);
  MPI_Comm_free(&local);
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() > unwinding_at_birth_) return;
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiEnvironment::world(std::int64_t max_message) {
  REPRISE_CHECK(0 < max_message && max_message <= kMaxMessage, "messages of {} elements", max_message);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, rank, size, "world", max_message);
}

}  // namespace reprise
