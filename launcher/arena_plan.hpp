#pragma once

#include <algorithm>
#include <cstdint>

#include "core/math.hpp"
#include "launcher/run_shape.hpp"

namespace reprise {

/// Arena without memory: the same order of takings and scopes has the same high-water mark.
class ArenaPlan {
 public:
  void take(std::int64_t bytes) {
    used_ += round_up(bytes, std::int64_t{64});
    high_water_ = std::max(high_water_, used_);
  }
  class Scope {
   public:
    /// `passes` false: what is taken while it lives is kept.
    explicit Scope(ArenaPlan& plan, bool passes = true) : plan_(plan), used_(plan.used_), passes_(passes) {}
    ~Scope() {
      if (passes_) plan_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    ArenaPlan& plan_;
    std::int64_t used_;
    bool passes_;
  };
  [[nodiscard]] std::int64_t high_water() const { return high_water_; }

 private:
  std::int64_t used_ = 0, high_water_ = 0;
};

/// What one rank computes on.
struct RankDevice {
  bool gpu = false;
  int threads = 1;  ///< of the rank, each with scratch of its own; nothing on a GPU
};

/// One micro-batch of a rank.
struct MicroBatchShape {
  std::int64_t tokens = 0;
  std::int64_t targets = 0;
  std::int64_t longest = 0;       ///< tokens of the longest document
  std::int64_t candidates = 0;    ///< ids of its tiles on this rank, together; 0 with full cross-entropy
  std::int64_t logits = 0;        ///< one a candidate and token of its tile
  std::int64_t segment_rows = 0;  ///< different ids of a segment of the head's gradient on this rank; 0 = all differ
};

/// High-water marks of the arena, from the order in which model and loss take memory: what these files do, without
/// doing it. `none` of the loss = the model alone.
enum class PlannedLoss : std::uint8_t { kNone, kRestricted, kFull };
/// `reduction`: scratch of the reductions of gradients that go along with backward.
[[nodiscard]] std::int64_t plan_training(const RunShape& run, const RankDevice& device, const MicroBatchShape& batch,
                                         PlannedLoss loss, std::int64_t reduction = 0);
[[nodiscard]] std::int64_t plan_evaluation(const RunShape& run, const RankDevice& device, const MicroBatchShape& batch);

}  // namespace reprise
