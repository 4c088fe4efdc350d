#include "parallel/nccl_group.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <fstream>
#include <utility>

#include "core/cuda/check.hpp"
#include "core/error.hpp"
#include "parallel/agree.hpp"
#include "parallel/nccl_kernels.hpp"

namespace reprise {

namespace {

constexpr double kLongestPollSeconds = 0.1;
constexpr double kLeaveSeconds = 30.0;

/// Between two questions to NCCL: short while it is likely to be done at once.
void pause(double waited_seconds) {
  if (waited_seconds < 100e-6) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(waited_seconds < 10e-3 ? 50 : 1000));
  }
}

}  // namespace

NcclWatch::NcclWatch(const NcclOptions& options) : options_(options), thread_([this] { watch(); }) {}

NcclWatch::~NcclWatch() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void NcclWatch::watch() {
  const double poll = std::min(options_.deadline_seconds / 10.0, kLongestPollSeconds);
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, std::chrono::duration<double>(poll), [this] { return stops_; })) {
    for (NcclGroup* const group : groups_) {
      if (failure_) break;
      if (const auto trouble = group->trouble()) fail_locked(*trouble);
    }
  }
}

void NcclWatch::add(NcclGroup* group) {
  const std::lock_guard lock(mutex_);
  groups_.push_back(group);
}

void NcclWatch::remove(NcclGroup* group) {
  const std::lock_guard lock(mutex_);
  std::erase(groups_, group);
}

std::string NcclWatch::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!failure_) fail_locked(reason);
  return *failure_;
}

std::optional<std::string> NcclWatch::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void NcclWatch::fail_locked(const std::string& reason) {
  failure_ = reason + write_log();
  for (NcclGroup* const group : groups_) group->abort_communication();
}

/// What to tell about it.
std::string NcclWatch::write_log() const {
  if (options_.log_file.empty()) return {};
  std::ofstream file(options_.log_file);
  for (NcclGroup* const group : groups_) file << group->log_text();
  file.close();
  if (!file) return fmt::format("; the log of collectives could not be written to {}", options_.log_file);
  return fmt::format(
      "; the last collectives of this rank are in {}: the rank without such a file, or with the lowest "
      "number in the group, is the one that is missing",
      options_.log_file);
}

NcclGroup::NcclGroup(std::shared_ptr<NcclWatch> watch, Communicator& bootstrap, const CudaStream& home)
    : watch_(std::move(watch)),
      name_(bootstrap.name()),
      rank_(bootstrap.rank()),
      size_(bootstrap.size()),
      unwinding_at_birth_(std::uncaught_exceptions()),
      home_(home),
      log_(name_, rank_, size_, watch_->options().log_entries),
      done_(Stream(home), 1, "the progress of collectives") {
  done_.view()[0] = 0;
  try {
    join(bootstrap);
  } catch (...) {
    abort_communication();
    throw;
  }
  watch_->add(this);
}

void NcclGroup::join(Communicator& bootstrap) {
  ncclUniqueId id{};
  agree(bootstrap, [&] {
    if (rank_ != 0) return;
    const ncclResult_t result = ncclGetUniqueId(&id);
    require(result == ncclSuccess, ErrorKind::kCommunication, "[{}] NCCL cannot start: {}", name_, nccl_text(result));
  });
  std::vector<std::uint8_t> bytes(sizeof id);
  std::memcpy(bytes.data(), &id, sizeof id);
  bootstrap.broadcast<std::uint8_t>(Stream(CpuStream{}), bytes, 0);
  std::memcpy(&id, bytes.data(), sizeof id);

  agree(bootstrap, [&] {
    REPRISE_CUDA(cudaSetDevice(home_.device));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t result = ncclCommInitRankConfig(&comm_, size_, id, rank_, &config);
    if (result == ncclInProgress) result = settle(watch_->options().deadline_seconds);
    if (result == ncclSuccess) return;
    if (result == ncclInProgress) {
      fail(ErrorKind::kCommunication, "[{}] rank {} of {} could not join: not all ranks came within {} s", name_, rank_,
           size_, watch_->options().deadline_seconds);
    }
    fail(ErrorKind::kCommunication,
         "[{}] rank {} of {} on GPU {} could not join: {}. NCCL wants a GPU for every rank; where ranks share one, use "
         "parallel.transport = \"staged\"",
         name_, rank_, size_, home_.device, nccl_text(result));
  });
}

NcclGroup::~NcclGroup() {
  const bool unwinding = std::uncaught_exceptions() > unwinding_at_birth_;
  try {
    if (unwinding) {  // all groups: one that waits would hold the stream that the others are on
      watch_->fail(fmt::format("[{}] rank {} leaves because of an error of its own", name_, rank_));
    }
    last_.synchronize();  // the watch is still there: it aborts what never ends
    watch_->remove(this);
    leave();
  } catch (const std::exception& error) {
    fmt::print(stderr, "[{}] rank {} while it leaves: {}\n", name_, rank_, error.what());
    watch_->remove(this);
    abort_communication();
  }
}

/// Finalize and destroy can wait for ever for a peer that is gone, so the wait is bounded.
void NcclGroup::leave() {
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    const ncclResult_t result = ncclCommFinalize(comm_);
    if (result != ncclSuccess && result != ncclInProgress) {
      static_cast<void>(ncclCommAbort(std::exchange(comm_, nullptr)));
      return;
    }
  }
  const ncclResult_t result = settle(kLeaveSeconds);
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return;
  if (result == ncclSuccess) {
    static_cast<void>(ncclCommDestroy(std::exchange(comm_, nullptr)));
  } else {
    static_cast<void>(ncclCommAbort(std::exchange(comm_, nullptr)));
  }
}

void NcclGroup::abort_communication() {
  const std::lock_guard lock(mutex_);
  if (comm_ != nullptr) static_cast<void>(ncclCommAbort(std::exchange(comm_, nullptr)));
}

void NcclGroup::run(Collective verb, std::int64_t count, DType dtype, const CudaStream& stream,
                    const std::function<void()>& body) {
  begin(verb, count, dtype, stream);
  try {
    body();
    end(stream);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kCommunication) throw;
    fail_here(error.what());
  }
}

void NcclGroup::begin(Collective verb, std::int64_t count, DType dtype, const CudaStream& stream) {
  if (const auto failure = watch_->failure()) {
    fail(ErrorKind::kCommunication, "[{}] rank {} in {}: this rank's groups have failed: {}", name_, rank_,
         name_of(verb), *failure);
  }
  REPRISE_CHECK(stream.device == home_.device, "[{}] rank {} in {}: a stream of GPU {} where the group is on GPU {}",
                name_, rank_, name_of(verb), stream.device, home_.device);
  {
    const std::lock_guard lock(mutex_);
    if (done() == log_.last()) progress_ = Clock::now();
    log_.add(verb, count, dtype, seconds_since(born_));
  }
  if (last_stream_ != nullptr && last_stream_ != stream.handle) last_.make_wait(stream);
  last_stream_ = stream.handle;
}

void NcclGroup::end(const CudaStream& stream) {
  write_when_reached(stream, done_.view().data, log_.last());
  last_.record(stream);
  const std::lock_guard lock(mutex_);
  queued_ = log_.last();
}

void NcclGroup::exchange(const CudaStream& stream, const std::function<void(Calls& calls)>& calls) {
  ncclResult_t result = ncclSuccess;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) {  // else the watch has aborted it
      result = ncclGroupStart();
      if (result == ncclSuccess) {
        Calls asked{.comm = comm_, .stream = stream.handle};
        calls(asked);
        const ncclResult_t started = ncclGroupEnd();
        result = asked.result != ncclSuccess ? asked.result : started;
      }
    }
  }
  if (result == ncclInProgress) result = settle(watch_->options().deadline_seconds);
  if (const auto failure = watch_->failure()) throw Error(ErrorKind::kCommunication, *failure);
  if (result == ncclSuccess) return;
  if (result == ncclInProgress) {
    fail_here(fmt::format("not all ranks came within {} s", watch_->options().deadline_seconds));
  }
  std::unique_lock lock(mutex_);
  const std::string text = nccl_text(result);
  lock.unlock();
  fail_here(text);
}

ncclResult_t NcclGroup::settle(double seconds) {
  const auto start = Clock::now();
  while (true) {
    ncclResult_t state = ncclSuccess;
    {
      const std::lock_guard lock(mutex_);
      if (comm_ == nullptr) return ncclRemoteError;  // aborted; the watch knows why
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
      if (asked != ncclSuccess) return asked;
    }
    const double waited = seconds_since(start);
    if (state != ncclInProgress || waited > seconds) return state;
    pause(waited);
  }
}

void NcclGroup::fail_here(std::string_view what) {
  std::string text;
  {
    const std::lock_guard lock(mutex_);
    text = fmt::format("[{}] rank {} of {} in {}: {}", name_, rank_, size_, log_.describe(log_.last()), what);
  }
  throw Error(ErrorKind::kCommunication, watch_->fail(text));
}

std::optional<std::string> NcclGroup::trouble() {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return std::nullopt;
  const std::uint64_t now_done = done();
  if (now_done != seen_done_) {
    seen_done_ = now_done;
    progress_ = Clock::now();
  }
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
  if (asked != ncclSuccess) state = asked;
  const auto told = [&](const std::string& what) {
    return fmt::format("[{}] rank {} of {} in {}: {}", name_, rank_, size_,
                       log_.describe(std::min(now_done + 1, log_.last())), what);
  };
  if (state != ncclSuccess && state != ncclInProgress) return told(nccl_text(state));
  const double deadline = watch_->options().deadline_seconds;
  if (queued_ > now_done && seconds_since(progress_) > deadline) {
    return told(fmt::format("not done within {} s: a peer is gone or has called something else", deadline));
  }
  return std::nullopt;
}

std::string NcclGroup::log_text() {
  const std::lock_guard lock(mutex_);
  return log_.text(done(), queued_);
}

std::uint64_t NcclGroup::done() const {
  const std::uint64_t* const word = done_.view().data;
  return std::atomic_ref<std::uint64_t>(*const_cast<std::uint64_t*>(word)).load(std::memory_order_acquire);
}

double NcclGroup::seconds_since(Clock::time_point time) const {
  return std::chrono::duration<double>(Clock::now() - time).count();
}

/// NCCL's own words. With `mutex_` held, or before the watch knows this group.
std::string NcclGroup::nccl_text(ncclResult_t result) const {
  const char* const detail = ncclGetLastError(comm_);
  std::string text = fmt::format("NCCL: {}", ncclGetErrorString(result));
  if (detail != nullptr && *detail != '\0') text += fmt::format(" ({})", detail);
  return text;
}

}  // namespace reprise
