#include "core/arena.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

void* Arena::take(std::int64_t bytes, std::string_view what) {
  constexpr std::int64_t kAlignment = 64, kSmallestBlock = std::int64_t{1} << 20;
  REPRISE_CHECK(bytes >= 0 && bytes <= (std::int64_t{1} << 60), "{} bytes for {}", bytes, what);
  const std::int64_t size = round_up(bytes, kAlignment);
  while (block_ < blocks_.size() && used_ + size > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  std::int64_t before = 0;  // bytes of the blocks that are left behind, filled or not
  for (std::size_t i = 0; i < block_; ++i) before += blocks_[i].bytes();
  if (block_ == blocks_.size()) {
    blocks_.emplace_back(stream_, std::max({size, before, kSmallestBlock}), what);
  }
  void* const memory = blocks_[block_].view().data + used_;
  used_ += size;
  high_water_ = std::max(high_water_, before + used_);
  return memory;
}

void Arena::rewind(std::size_t block, std::int64_t used) {
  block_ = block;
  used_ = used;
}

void Arena::reset() {
  if (blocks_.size() > 1) {
    blocks_.clear();
    blocks_.emplace_back(stream_, high_water_, "the step's activations");
  }
  block_ = 0;
  used_ = 0;
}

}  // namespace reprise
