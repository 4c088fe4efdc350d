#include "launcher/session.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <new>
#include <thread>

#include "core/error.hpp"
#include "core/gemm.hpp"
#include "launcher/launch_environment.hpp"
#include "parallel/agree.hpp"
#include "parallel/mpi_communicator.hpp"
#include "parallel/nccl_communicator.hpp"
#include "parallel/self_communicator.hpp"
#include "parallel/staged_communicator.hpp"
#include "parallel/thread_communicator.hpp"

namespace reprise {

namespace {

struct Failure {
  int rank = 0;
  int exit_code = 1;
  std::string message;
};

Failure current_failure(int rank) {
  try {
    throw;
  } catch (const Error& error) {
    return {rank, error.exit_code(), error.what()};
  } catch (const std::filesystem::filesystem_error& error) {
    return {rank, static_cast<int>(ErrorKind::kDisk), error.what()};
  } catch (const std::bad_alloc&) {
    return {
        rank, static_cast<int>(ErrorKind::kInternal),
        "out of memory; `reprise check` says what a rank needs, more ranks or a smaller train.micro_batch need less"};
  } catch (const std::exception& error) {
    return {rank, static_cast<int>(ErrorKind::kInternal), fmt::format("unexpected: {}", error.what())};
  }
}

/// "error: first line" and the other lines indented; one write, so that ranks do not mix their lines.
void print_failure(const Failure& failure, bool with_rank) {
  const bool preempted = failure.exit_code == static_cast<int>(ErrorKind::kPreempted);
  const bool coloured = ::isatty(STDERR_FILENO) != 0;
  const char* word = preempted ? "preempted" : "error";
  std::string text =
      coloured ? fmt::format("\033[1;{}m{}:\033[0m ", preempted ? 33 : 31, word) : fmt::format("{}: ", word);
  if (with_rank) text += fmt::format("rank {}: ", failure.rank);
  for (const char c : failure.message) {
    text += c;
    if (c == '\n') text += "  ";
  }
  text += '\n';
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

/// Most failures are found by every rank alike. Rank 0 speaks at once and ends the job; another rank waits for that,
/// the longer the higher it is, and speaks when nobody has ended it.
void print_failure_once(const Failure& failure, int world_size) {
  std::signal(SIGTERM, SIG_DFL);  // what a launcher sends to the rest of an aborted job
  if (failure.rank > 0) {
    constexpr int kFirst = 2000, kEach = 20, kLongest = 5000;
    std::this_thread::sleep_for(std::chrono::milliseconds(std::min(kFirst + kEach * failure.rank, kLongest)));
  }
  print_failure(failure, world_size > 1 && failure.rank > 0);
}

using Body = std::function<void(Communicator& world, int threads)>;

int run_with_mpi(int argc, char** argv, const RankOptions& options, const Body& body) {
  check_process_manager();
  MpiEnvironment mpi(&argc, &argv);
  const auto world = mpi.world();
  try {
    const auto places = gather_rank_places(*world);  // always, lest ranks with other flags wait for ever
    const int threads =
        options.threads > 0 ? options.threads : threads_of_rank(places, static_cast<std::size_t>(world->rank()));
    set_gemm_threads(1);  // GEMM tiles run on the rank's own threads
    body(*world, threads);
    return 0;
  } catch (...) {
    const Failure failure = current_failure(world->rank());
    print_failure_once(failure, world->size());
    world->abort(failure.exit_code);  // srun would report an ordinary exit of one rank as 137
    return failure.exit_code;
  }
}

int run_with_threads(const RankOptions& options, const Body& body) {
  const int available = threads_of_process(affinity_cores(), {affinity_cores()}, quota_cores());
  const int threads = options.threads > 0 ? options.threads : std::max(1, available / options.thread_ranks);
  set_gemm_threads(1);
  std::mutex mutex;
  std::vector<Failure> failures;  // by time
  try {
    run_ranks(options.thread_ranks, [&](Communicator& world) {
      try {
        body(world, threads);
      } catch (...) {
        const std::lock_guard lock(mutex);
        failures.push_back(current_failure(world.rank()));
        throw;
      }
    });
    return 0;
  } catch (...) {
    if (failures.empty()) throw;
    const Failure& first = failures.front();
    const auto alike = std::count_if(failures.begin(), failures.end(),
                                     [&](const Failure& other) { return other.message == first.message; });
    print_failure(first, alike < options.thread_ranks);
    return first.exit_code;
  }
}

int run_alone(const RankOptions& options, const Body& body) {
  const int available = threads_of_process(affinity_cores(), {affinity_cores()}, quota_cores());
  const int threads = options.threads > 0 ? options.threads : available;
  set_gemm_threads(1);
  const auto world = make_self_communicator("world");
  body(*world, threads);
  return 0;
}

int run_with(int argc, char** argv, const RankOptions& options, const Body& body) {
  const LaunchEnvironment launch = detect_launch();
  if (launch.mpi || options.transport == "mpi") {
    // MPI comes first, so that a failure that all ranks find ends the job by one voice.
    return run_with_mpi(argc, argv, options, [&](Communicator& world, int threads) {
      check_transport(options);
      body(world, threads);
    });
  }
  check_transport(options);
  const bool threads = options.transport == "thread" || options.thread_ranks > 1;
  return threads ? run_with_threads(options, body) : run_alone(options, body);
}

std::string log_file(const DeviceOptions& device, int rank) {
  return device.log_folder.empty() ? "" : fmt::format("{}/nccl-rank-{:05}.log", device.log_folder, rank);
}

volatile std::sig_atomic_t stop_signal = 0;

extern "C" void note_stop_signal(int) {
  stop_signal = 1;
}

}  // namespace

Session::Session(Communicator& world, std::int64_t tensor_size, bool sequence_parallel, int threads,
                 const DeviceOptions& device)
    : pool_(threads), host_(CpuStream{&pool_}), stream_(host_), arena_(host_), sequence_parallel_(sequence_parallel) {
  const DevicePlan plan = plan_devices(gather_rank_gpus(world), device);
  transport_ = plan.transport;
  if (plan.gpu) {
    agree(world, [&] { gpu_ = open_gpu(plan.numbers[static_cast<std::size_t>(world.rank())]); });
    stream_ = gpu_->stream();
    arena_ = Arena(stream_);
    auto queue = make_side_queue(stream_, QueuePriority::kHigh);
    const Stream side = queue->stream();
    side_ = std::make_unique<Side>(Side{std::move(queue), side, Arena(side)});
    device_world_ = transport_ == DeviceTransport::kNccl
                        ? make_nccl_communicator(world, stream_, {.log_file = log_file(device, world.rank())})
                        : make_staged_communicator(world, {.host = CpuStream{&pool_}});
  }
  groups_ = ProcessGroups::make(device_world_ ? *device_world_ : world, static_cast<int>(tensor_size));
}

std::string Session::on_device() const {
  if (!gpu_) return "";
  return world().size() > 1 ? fmt::format(" on {} ({})", gpu_->info().name, device_transport())
                            : fmt::format(" on {}", gpu_->info().name);
}

std::int64_t Session::peak_memory_bytes() const {
  return reprise::peak_memory_bytes() + (gpu_ ? gpu_->peak_memory_bytes() : 0);
}

void check_transport(const RankOptions& options) {
  const LaunchEnvironment launch = detect_launch();
  require(options.thread_ranks >= 1, ErrorKind::kUsage, "{} ranks: must be at least 1", options.thread_ranks);
  const std::string& transport = options.transport;
  constexpr std::array kTransports = {"auto", "self", "thread", "mpi", "nccl", "staged"};
  require(std::find(kTransports.begin(), kTransports.end(), transport) != kTransports.end(), ErrorKind::kUsage,
          "parallel.transport = \"{}\": must be one of \"{}\"", transport, fmt::join(kTransports, "\", \""));
  require(
      !launch.mpi || (transport != "self" && transport != "thread"), ErrorKind::kUsage,
      "{} started {} processes, but parallel.transport = \"{}\" makes each of them a job of its own; use \"auto\" or "
      "\"mpi\"",
      launch.launcher, launch.size, transport);
  const bool threads = !launch.mpi && transport != "self" && transport != "mpi";
  require(options.thread_ranks == 1 || threads, ErrorKind::kUsage,
          "--ranks {} makes ranks as threads of one process; leave it away under mpirun or srun, and with "
          "parallel.transport = \"{}\"",
          options.thread_ranks, transport);
}

int report_failures(const std::function<int()>& body) {
  try {
    return body();
  } catch (...) {
    const Failure failure = current_failure(0);
    print_failure(failure, false);
    return failure.exit_code;
  }
}

int run_ranked(int argc, char** argv, const RankOptions& options, const Body& body) {
  return report_failures([&] { return run_with(argc, argv, options, body); });
}

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = note_stop_signal;
  ::sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);  // a second one ends the process at once
  ::sigaction(SIGTERM, &action, nullptr);
}

bool stop_requested() {
  return stop_signal != 0;
}

std::int64_t peak_memory_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace reprise
