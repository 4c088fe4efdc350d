#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "optimizer/optimizer.hpp"

namespace reprise {

/// One training step as metrics.jsonl holds it; absent values are left out of the line.
struct StepMetrics {
  std::int64_t step = 0;  ///< 1-based: steps done
  double loss = 0.0;      ///< sum w l / sum w over the global batch, nats
  double lr = 0.0;
  double grad_norm = 0.0;
  bool skipped = false;
  std::int64_t tokens = 0;  ///< target tokens of the step
  std::optional<AngleStatistics> angles;
  std::optional<double> out_of_set_mass;
  double head_ms = 0.0, step_ms = 0.0, tokens_per_second = 0.0;
  std::int64_t memory_bytes = 0;  ///< peak of the largest rank, resident and on its GPU
};

/// `<run>/metrics.jsonl`: first line {"schema": 1, ...}, then one object a step ("step loss lr grad_norm angle_mean
/// angle_max clipped_share angle_quantiles skipped tokens out_of_set_mass head_ms step_ms tokens_per_second
/// memory_bytes") and one per evaluation ("step eval loss top1 tokens"). Numbers by shortest round trip. Rank 0 only.
/// Each line is flushed; failures throw Error(kDisk).
class MetricsFile {
 public:
  /// `keep_bytes` of an existing file stay (resume), the rest is cut; 0 starts a new file.
  MetricsFile(std::filesystem::path path, std::int64_t keep_bytes);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  void write(const StepMetrics& metrics);
  void write_evaluation(std::int64_t step, const std::string& prefix, double loss, double top1, std::int64_t tokens);
  [[nodiscard]] std::int64_t bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise
