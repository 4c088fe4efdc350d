#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

namespace reprise {

/// Makes items 'first', first + 1, ... below 'end' on a thread of its own, up to `depth` ahead of who takes them. What
/// the maker throws is thrown by the `next` of that item.
template <class Item>
class Prefetcher {
 public:
  Prefetcher(std::int64_t first, std::int64_t end, std::function<Item(std::int64_t)> make, std::size_t depth = 2)
      : make_(std::move(make)),
        depth_(depth),
        thread_([this, first, end](std::stop_token stop) { produce(stop, first, end); }) {}
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  ~Prefetcher() = default;  // std::jthread asks for the stop and joins

  /// The next item; not to be called more than end - first times.
  [[nodiscard]] Item next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty(); });
    Slot slot = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    changed_.notify_all();
    if (slot.failure) std::rethrow_exception(slot.failure);
    return std::move(slot.item);
  }

 private:
  struct Slot {
    Item item{};
    std::exception_ptr failure;
  };

  void produce(const std::stop_token& stop, std::int64_t first, std::int64_t end) {
    for (std::int64_t i = first; i < end && !stop.stop_requested(); ++i) {
      Slot slot;
      try {
        slot.item = make_(i);
      } catch (...) {
        slot.failure = std::current_exception();
      }
      const bool failed = slot.failure != nullptr;
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return ready_.size() < depth_; })) return;
      ready_.push_back(std::move(slot));
      lock.unlock();
      changed_.notify_all();
      if (failed) return;
    }
  }

  std::function<Item(std::int64_t)> make_;
  std::size_t depth_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Slot> ready_;
  std::jthread thread_;  // last: it uses the members above
};

}  // namespace reprise
