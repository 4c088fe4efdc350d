#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/buffer.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// Step-lifetime memory: activations (micro-batch) and scratch (call), handed out in order and released in reverse.
/// The first steps may add blocks; from then on nothing is allocated (`high_water_bytes` is stable).
/// Memory is NOT zeroed. Not thread-safe: one arena per rank.
class Arena {
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

  /// Everything taken while a Scope lives is given back at its end: the way to write scratch.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_) {}
    ~Scope() { arena_.rewind(block_, used_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    std::size_t block_;
    std::int64_t used_;
  };

  /// Forgets everything; with more than one block they become one, so that the next step needs no allocation.
  void reset();
  [[nodiscard]] std::int64_t high_water_bytes() const { return high_water_; }

 private:
  void* take(std::int64_t bytes, std::string_view what);
  void rewind(std::size_t block, std::int64_t used);

  Stream stream_;
  std::vector<Buffer<std::uint8_t>> blocks_;
  std::size_t block_ = 0;  // the block that is being filled
  std::int64_t used_ = 0;  // bytes taken of that block
  std::int64_t high_water_ = 0;
};

}  // namespace reprise
