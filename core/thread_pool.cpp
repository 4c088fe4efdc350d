#include "core/thread_pool.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {
namespace {

using Body = std::function<void(std::int64_t, std::int64_t)>;
using Clock = std::chrono::steady_clock;

constexpr auto kSpinTime = std::chrono::microseconds(20);

thread_local const void* pool_of_this_thread = nullptr;  // the pool whose body is running on this thread

int cores_of_this_process() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Waits until ready(): a short spin that lets others run, then `sleep`, which may return early.
template <class Ready, class Sleep>
void wait_until(bool may_spin, const Ready& ready, const Sleep& sleep) {
  if (ready()) return;
  if (may_spin) {
    const auto deadline = Clock::now() + kSpinTime;
    while (Clock::now() < deadline) {
      for (int i = 0; i < 16; ++i) {
        if (ready()) return;
        relax();
      }
      std::this_thread::yield();
    }
  }
  while (!ready()) sleep();
}

}  // namespace

// A job is published by one store to `ticket`: its upper half is the job's number, its lower half the next chunk. A
// worker reads the job's fields and then claims the chunk by compare-exchange. Success proves that the chunk was
// unclaimed until then, hence that the job was not over and the fields were its own. Workers that sleep through a whole
// job are not waited for.
struct ThreadPool::Impl {
  explicit Impl(int num_threads) : may_spin(num_threads <= cores_of_this_process()) {
    workers.reserve(static_cast<std::size_t>(num_threads - 1));
    try {
      for (int i = 1; i < num_threads; ++i) workers.emplace_back([this] { work(); });
    } catch (const std::system_error& error) {
      const std::size_t started = workers.size() + 1;
      stop();
      fail(ErrorKind::kUsage,
           "only {} of {} threads could be started ({}); use fewer threads a rank or raise `ulimit -u`", started,
           num_threads, error.what());
    }
  }
  ~Impl() { stop(); }

  void stop() {
    stopping.store(true);
    job.fetch_add(1);
    job.notify_all();
    for (auto& worker : workers) worker.join();
    workers.clear();
  }
  void work();
  void run_chunks(std::uint32_t number);
  void run_chunk(const Body& chunk_body, std::int64_t begin, std::int64_t end);

  const bool may_spin;
  std::vector<std::thread> workers;
  std::atomic<bool> busy{false}, stopping{false}, failed{false};

  std::atomic<const Body*> body{nullptr};
  std::atomic<std::int64_t> size{0}, grain{1};
  std::atomic<std::uint32_t> chunks{0};

  alignas(64) std::atomic<std::uint64_t> ticket{0};
  alignas(64) std::atomic<std::uint32_t> job{0};  // workers sleep on it
  alignas(64) std::atomic<std::uint32_t> unfinished{0};

  std::mutex error_mutex;
  std::exception_ptr first_error;
};

void ThreadPool::Impl::work() {
  std::uint32_t seen = 0;
  while (true) {
    wait_until(
        may_spin, [&] { return job.load() != seen; }, [&] { job.wait(seen); });
    seen = job.load();
    if (stopping.load()) return;
    run_chunks(seen);
  }
}

void ThreadPool::Impl::run_chunks(std::uint32_t number) {
  const void* const outer = std::exchange(pool_of_this_thread, this);
  std::uint64_t current = ticket.load();
  while (static_cast<std::uint32_t>(current >> 32) == number) {
    const auto chunk = static_cast<std::uint32_t>(current);
    const Body* const job_body = body.load();
    const std::int64_t job_size = size.load(), job_grain = grain.load();
    if (chunk >= chunks.load()) break;
    if (!ticket.compare_exchange_weak(current, current + 1)) continue;
    const std::int64_t begin = chunk * job_grain;
    run_chunk(*job_body, begin, std::min(job_size, begin + job_grain));
    if (unfinished.fetch_sub(1) == 1) unfinished.notify_one();
    ++current;
  }
  pool_of_this_thread = outer;
}

void ThreadPool::Impl::run_chunk(const Body& chunk_body, std::int64_t begin, std::int64_t end) {
  if (failed.load(std::memory_order_relaxed)) return;
  try {
    chunk_body(begin, end);
  } catch (...) {
    const std::lock_guard lock(error_mutex);
    if (!first_error) first_error = std::current_exception();
    failed.store(true);
  }
}

ThreadPool::ThreadPool(int num_threads) {
  REPRISE_CHECK(num_threads >= 1, "a pool of {} threads", num_threads);
  impl_ = std::make_unique<Impl>(num_threads);
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::num_threads() const noexcept {
  return static_cast<int>(impl_->workers.size()) + 1;
}

void ThreadPool::run(std::int64_t size, std::int64_t grain, const Body& body) {
  grain = std::max<std::int64_t>(grain, 1);
  Impl& impl = *impl_;
  if (impl.workers.empty() || size <= grain || pool_of_this_thread == &impl) {
    for (std::int64_t begin = 0; begin < size; begin += grain) body(begin, std::min(size, begin + grain));
    return;
  }
  const std::int64_t chunks = ceil_div(size, grain);
  REPRISE_CHECK(chunks < std::numeric_limits<std::uint32_t>::max(), "{} chunks of {} elements", chunks, grain);
  REPRISE_CHECK(!impl.busy.exchange(true), "two threads run the same pool at once");
  impl.failed.store(false);
  impl.body.store(&body);
  impl.size.store(size);
  impl.grain.store(grain);
  impl.chunks.store(static_cast<std::uint32_t>(chunks));
  impl.unfinished.store(static_cast<std::uint32_t>(chunks));
  const std::uint32_t number = impl.job.load() + 1;
  impl.ticket.store(static_cast<std::uint64_t>(number) << 32);
  impl.job.store(number);
  impl.job.notify_all();

  impl.run_chunks(number);
  wait_until(
      impl.may_spin, [&] { return impl.unfinished.load() == 0; },
      [&] {
        const std::uint32_t left = impl.unfinished.load();
        if (left != 0) impl.unfinished.wait(left);
      });
  const std::exception_ptr error = std::exchange(impl.first_error, nullptr);
  impl.busy.store(false);
  if (error) std::rethrow_exception(error);
}

}  // namespace reprise
