#pragma once

namespace reprise {

/// A named stretch of a profile: one for each phase, layer, collective and family of kernels. Ranges nest. With CUDA
/// they are NVTX ranges of the domain "reprise", which nsys shows; without, nothing.
class TraceRange {
 public:
  explicit TraceRange(const char* name);
  ~TraceRange();
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;
};

}  // namespace reprise
