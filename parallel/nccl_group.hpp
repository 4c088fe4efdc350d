#pragma once

#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/cuda_stream.hpp"
#include "core/transfer.hpp"
#include "parallel/collective_log.hpp"
#include "parallel/nccl_communicator.hpp"

namespace reprise {

class NcclGroup;

/// What the groups of one rank share: their first failure, and the thread that looks for it.
class NcclWatch {
 public:
  explicit NcclWatch(const NcclOptions& options);
  ~NcclWatch();
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;

  void add(NcclGroup* group);
  void remove(NcclGroup* group);
  /// The first failure is kept: writes the log, aborts all groups. Returns what is kept.
  std::string fail(const std::string& reason);
  [[nodiscard]] std::optional<std::string> failure() const;
  [[nodiscard]] const NcclOptions& options() const { return options_; }

 private:
  void watch();
  void fail_locked(const std::string& reason);
  [[nodiscard]] std::string write_log() const;

  const NcclOptions options_;
  mutable std::mutex mutex_;  // never taken while a group's is held
  std::condition_variable changed_;
  std::vector<NcclGroup*> groups_;
  std::optional<std::string> failure_;
  bool stops_ = false;
  std::thread thread_;
};

/// One NCCL communicator of this rank and what it has been asked for.
class NcclGroup {
 public:
  /// The results of NCCL calls between ncclGroupStart and ncclGroupEnd.
  struct Calls {
    ncclComm_t comm;
    cudaStream_t stream;
    ncclResult_t result = ncclSuccess;  // the first that is an error
    void operator()(ncclResult_t next) {
      if (result == ncclSuccess && next != ncclInProgress) result = next;
    }
  };

  /// Collective over `bootstrap`, which carries the id; every rank throws when one cannot join.
  NcclGroup(std::shared_ptr<NcclWatch> watch, Communicator& bootstrap, const CudaStream& home);
  /// Waits until all that was asked for is done or has failed; while an exception unwinds it aborts the rank's groups
  /// first.
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  /// One collective on `stream`, behind all earlier ones of this group: body() calls exchange and starts kernels.
  void run(Collective verb, std::int64_t count, DType dtype, const CudaStream& stream,
           const std::function<void()>& body);
  /// Within run: `calls` ask NCCL for transfers that start together. Returns when NCCL has put them on the stream.
  void exchange(const CudaStream& stream, const std::function<void(Calls& calls)>& calls);

  /// Later work of `stream` waits for the collective before the running one.
  void make_wait(const CudaStream& stream) const { last_.make_wait(stream); }

  // For the watch.
  [[nodiscard]] std::optional<std::string> trouble();
  [[nodiscard]] std::string log_text();
  void abort_communication();

 private:
  using Clock = std::chrono::steady_clock;

  void join(Communicator& bootstrap);
  void begin(Collective verb, std::int64_t count, DType dtype, const CudaStream& stream);
  void end(const CudaStream& stream);
  /// Waits while NCCL works in the background; what it came to. `mutex_` is not held.
  ncclResult_t settle(double seconds);
  void leave();
  [[noreturn]] void fail_here(std::string_view what);
  [[nodiscard]] std::uint64_t done() const;
  [[nodiscard]] double seconds_since(Clock::time_point time) const;
  [[nodiscard]] std::string nccl_text(ncclResult_t result) const;

  const std::shared_ptr<NcclWatch> watch_;
  const std::string name_;
  const int rank_, size_, unwinding_at_birth_;
  const CudaStream home_;

  std::mutex mutex_;  // guards comm_ with all calls on it, and what the watch reads
  ncclComm_t comm_ = nullptr;
  CollectiveLog log_;
  std::uint64_t queued_ = 0, seen_done_ = 0;
  const Clock::time_point born_ = Clock::now();
  Clock::time_point progress_ = born_;

  HostBuffer<std::uint64_t> done_;  // the device writes the number of the last collective that it has done
  CudaEvent last_;                  // after the latest collective
  cudaStream_t last_stream_ = nullptr;
};

}  // namespace reprise
