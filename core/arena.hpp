#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/buffer.hpp"
#include "core/staging.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// Step-lifetime memory: activations (micro-batch) and scratch (call), handed out in order and released in reverse.
/// The first steps may add blocks; from then on nothing is allocated (`high_water_bytes` is stable).
/// Memory is NOT zeroed. Not thread-safe: one arena per rank.
class Arena {
  /// Up to where memory is handed out.
  struct Place {
    std::size_t block = 0;    // that is being filled
    std::int64_t used = 0;    // bytes taken of it
    std::int64_t before = 0;  // bytes taken of the blocks in front of it
  };

 public:
  explicit Arena(Stream stream) : stream_(std::move(stream)) {}

  /// 64-byte aligned, uninitialised. `what` names the tensor in an out-of-memory message.
  template <class T>
  [[nodiscard]] VectorView<T> vector(std::int64_t size, std::string_view what = "scratch") {
    return {static_cast<T*>(take(size * static_cast<std::int64_t>(sizeof(T)), what)), size};
  }
  template <class T>
  [[nodiscard]] MatrixView<T> matrix(std::int64_t rows, std::int64_t cols, std::string_view what = "scratch") {
    return {vector<T>(rows * cols, what), rows, cols};
  }

  /// Memory with these values. The host does not wait, and `host` may be reused at once: on a GPU the values go through
  /// page-locked memory.
  template <class T>
  [[nodiscard]] VectorView<T> copy(VectorView<const T> host, std::string_view what = "values") {
    const VectorView<T> values = vector<T>(host.size, what);
    copy_bytes(host.data, values.data, host.size * static_cast<std::int64_t>(sizeof(T)), what);
    return values;
  }

  /// Everything taken while a Scope lives is given back at its end: the way to write scratch.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), place_(arena.place_) {}
    ~Scope() { arena_.place_ = place_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    Place place_;
  };

  /// Forgets everything; with more than one block they become one, so that the next step needs no allocation.
  void reset();
  /// From the next reset on there is one block of at least this size: what the largest step is known to want, so that
  /// no later one has to grow. On a CPU pages that are never written cost nothing.
  void reserve(std::int64_t bytes) { reserved_ = std::max(reserved_, bytes); }
  /// The most that was handed out at one time.
  [[nodiscard]] std::int64_t high_water_bytes() const { return high_water_; }
  /// What the blocks hold, handed out or not.
  [[nodiscard]] std::int64_t held_bytes() const;
  /// Blocks allocated so far.
  [[nodiscard]] std::int64_t allocations() const { return allocations_; }

 private:
  void* take(std::int64_t bytes, std::string_view what);
  void add_block(std::int64_t bytes, std::string_view what);
  void copy_bytes(const void* host, void* values, std::int64_t bytes, std::string_view what);
  Stream stream_;
  Staging staging_{false};
  std::vector<Buffer<std::uint8_t>> blocks_;
  Place place_;
  std::int64_t high_water_ = 0, reserved_ = 0, allocations_ = 0;
};

}  // namespace reprise
