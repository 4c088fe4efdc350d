// NCCL's functions for ranks that are threads, each with an emulated device of its own. Every transfer is a message
// between two ranks, matched in the order of calls as NCCL does; work on a late stream goes on in the background, as on
// a GPU. Communicators are non-blocking: a call returns at once and is in progress until it is on the stream. Sums are
// made from the last rank to the first, so that a caller who needs another order cannot pass by chance.
#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/cuda_emulation/block.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/cuda_emulation/nccl_faults.hpp"
#include "tests/support/cuda_emulation/nccl_operation.hpp"
#include "tests/support/cuda_emulation/queue.hpp"

namespace cuda_emulation {
namespace {
thread_local std::string thread_error;
}  // namespace

ncclResult_t refuse(ncclResult_t result, const std::string& text) {
  thread_error = text;
  return result;
}

}  // namespace cuda_emulation

namespace {

using namespace cuda_emulation;

struct Message {
  std::string what;
  Bytes bytes;
  bool is_taken = false;
};

/// What the ranks of one id share.
struct World {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<int, int> device_of;                                              // of the ranks that have joined
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> mail;  // by (from, to)
};

/// Does one thing after the other in a thread of its own.
class Worker {
 public:
  Worker() : thread_([this] { work(); }) {}
  ~Worker() {
    push(nullptr);
    thread_.join();
  }
  void push(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    changed_.notify_all();
  }

 private:
  void work() {
    while (true) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !jobs_.empty(); });
      const auto job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      if (!job) return;
      job();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  std::thread thread_;
};

std::atomic<int> living = 0;
thread_local int group_depth = 0;
thread_local std::vector<Operation> group;

struct Faults {
  std::mutex mutex;
  std::map<int, ncclResult_t> by_device;
};
Faults& faults() {
  static Faults instance;
  return instance;
}

std::shared_ptr<World> world_of(const ncclUniqueId& id) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<World>> worlds;
  const std::lock_guard lock(mutex);
  auto& entry = worlds[std::string(id.internal, sizeof id.internal)];
  auto world = entry.lock();
  if (!world) entry = world = std::make_shared<World>();
  return world;
}

}  // namespace

struct ncclComm {
  std::shared_ptr<World> world;
  int rank = 0, size = 1, device = 0;

  // Guarded by the world's mutex.
  ncclResult_t state = ncclInProgress;
  std::string error;
  bool is_aborted = false;

  std::unique_ptr<Worker> runner = std::make_unique<Worker>();    // goes on with late streams
  std::unique_ptr<Worker> launcher = std::make_unique<Worker>();  // puts calls on streams

  void settle(ncclResult_t result, std::string text = {}) {
    const std::lock_guard lock(world->mutex);
    if (state != ncclInProgress && result == ncclSuccess) return;  // an error stays
    state = result;
    if (!text.empty()) error = std::move(text);
    world->changed.notify_all();
  }
  /// With the lock held; false when the communicator was aborted meanwhile.
  template <class Condition>
  bool wait(std::unique_lock<std::mutex>& lock, const Condition& condition) {
    world->changed.wait(lock, [&] { return is_aborted || condition(); });
    return !is_aborted;
  }
};

namespace {

void join(ncclComm& comm) {
  World& world = *comm.world;
  std::unique_lock lock(world.mutex);
  world.device_of[comm.rank] = comm.device;
  world.changed.notify_all();
  if (!comm.wait(lock, [&] { return static_cast<int>(world.device_of.size()) == comm.size; })) return;
  for (const auto& [rank, device] : world.device_of) {
    if (rank != comm.rank && device == comm.device) {
      lock.unlock();
      comm.settle(ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(comm.rank) + " and rank " +
                                        std::to_string(rank) + " both on device " + std::to_string(device));
      return;
    }
  }
  lock.unlock();
  comm.settle(ncclSuccess);
}

/// All calls of a group together: everything is sent, then received, then the peers have taken what was sent.
void transfer(ncclComm& comm, const std::vector<Operation>& operations) {
  World& world = *comm.world;
  std::vector<std::shared_ptr<Message>> sent;
  std::unique_lock lock(world.mutex);
  for (const Operation& operation : operations) {
    for (const auto& send : operation.sends) {
      const auto* const data = static_cast<const std::byte*>(real_address(send.data));
      const auto message = std::make_shared<Message>();
      message->what = operation.what;
      message->bytes.assign(data, data + operation.bytes);
      sent.push_back(message);
      world.mail[{comm.rank, send.to}].push_back(message);
    }
  }
  world.changed.notify_all();
  for (const Operation& operation : operations) {
    std::vector<Bytes> received;
    for (const int from : operation.receives) {
      auto& box = world.mail[{from, comm.rank}];
      if (!comm.wait(lock, [&] { return !box.empty(); })) return;
      const auto message = box.front();
      box.pop_front();
      message->is_taken = true;
      world.changed.notify_all();
      if (message->what != operation.what) {
        lock.unlock();
        comm.settle(ncclInternalError, "rank " + std::to_string(from) + " sends '" + message->what + "' and rank " +
                                           std::to_string(comm.rank) + " expects '" + operation.what + "'");
        return;
      }
      received.push_back(message->bytes);
    }
    if (operation.store) operation.store(received);
  }
  for (const auto& message : sent) {
    if (!comm.wait(lock, [&] { return message->is_taken; })) return;
  }
}

void hang(ncclComm& comm, ncclResult_t error) {
  comm.settle(error, "a peer was lost");
  std::unique_lock lock(comm.world->mutex);
  static_cast<void>(comm.wait(lock, [] { return false; }));
}

/// Puts a group of calls on its stream. Work on an eager stream is done here.
void start(ncclComm& comm, cudaStream_t stream, const std::vector<Operation>& operations) {
  ncclResult_t fault = ncclSuccess;
  {
    const std::lock_guard lock(faults().mutex);
    const auto found = faults().by_device.find(comm.device);
    if (found != faults().by_device.end()) {
      fault = found->second;
      faults().by_device.erase(found);
    }
  }
  const auto guarded = [&comm](const std::function<void()>& body) {
    try {
      body();
    } catch (const std::exception& error) {
      comm.settle(ncclUnhandledCudaError, error.what());
    }
  };
  guarded([&] {
    enqueue(stream, [&comm, operations, fault] {
      if (fault != ncclSuccess) return hang(comm, fault);
      transfer(comm, operations);
    });
  });
  comm.settle(ncclSuccess);
  if (stream->is_late) {
    comm.runner->push(
        [guarded, stream, position = position_of(stream)] { guarded([&] { complete(stream, position); }); });
  }
}

ncclResult_t launch_group() {
  std::map<ncclComm_t, std::vector<Operation>> by_comm;
  for (Operation& operation : group) by_comm[operation.comm].push_back(std::move(operation));
  group.clear();
  for (auto& [comm, operations] : by_comm) {
    {
      const std::lock_guard lock(comm->world->mutex);
      if (comm->state == ncclInProgress) {
        return refuse(ncclInvalidUsage, "asked for while the call before is in progress");
      }
      if (comm->state != ncclSuccess) return comm->state;
      comm->state = ncclInProgress;
    }
    const auto stream = operations.front().stream;
    if (stream->device != comm->device) return refuse(ncclInvalidUsage, "a stream of another device");
    comm->launcher->push(
        [comm = comm, stream, operations = std::move(operations)] { start(*comm, stream, operations); });
  }
  return by_comm.empty() ? ncclSuccess : ncclInProgress;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t comm) {
  if (comm != nullptr) {
    const std::lock_guard lock(comm->world->mutex);
    if (!comm->error.empty()) thread_error = comm->error;
  }
  return thread_error.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int> next = 0;
  std::memset(id->internal, 0, sizeof id->internal);
  const std::string name = "emulated " + std::to_string(next++);
  std::memcpy(id->internal, name.data(), name.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (config->blocking != 0) return refuse(ncclInvalidArgument, "blocking communicators are not emulated");
  if (rank < 0 || rank >= ranks) return refuse(ncclInvalidArgument, "no such rank");
  auto made = std::make_unique<ncclComm>();
  made->world = world_of(id);
  made->rank = rank;
  made->size = ranks;
  static_cast<void>(cudaGetDevice(&made->device));
  made->launcher->push([joining = made.get()] { join(*joining); });
  ++living;
  *comm = made.release();
  return ncclInProgress;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  {
    const std::lock_guard lock(comm->world->mutex);
    if (comm->state != ncclSuccess) return refuse(ncclInvalidUsage, "finalized while something is in progress");
    comm->state = ncclInProgress;
  }
  comm->launcher->push([comm] { comm->runner->push([comm] { comm->settle(ncclSuccess); }); });
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  comm->launcher.reset();  // ends when its jobs are done; they may give the runner some
  comm->runner.reset();
  delete comm;
  --living;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  {
    const std::lock_guard lock(comm->world->mutex);
    comm->is_aborted = true;
    comm->world->changed.notify_all();
  }
  return ncclCommDestroy(comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard lock(comm->world->mutex);
  *state = comm->state;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  return --group_depth > 0 ? ncclSuccess : launch_group();
}

namespace cuda_emulation {

ncclResult_t ask(Operation operation) {
  group.push_back(std::move(operation));
  return group_depth > 0 ? ncclSuccess : launch_group();
}

int ranks_of(ncclComm_t comm) {
  return comm->size;
}
int rank_of(ncclComm_t comm) {
  return comm->rank;
}

void fail_next_transfer(int device, ncclResult_t error) {
  const std::lock_guard lock(faults().mutex);
  faults().by_device[device] = error;
}

int living_nccl_communicators() {
  return living;
}

}  // namespace cuda_emulation
