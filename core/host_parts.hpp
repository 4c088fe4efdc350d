#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <string_view>

#include "core/transfer.hpp"

namespace reprise {

/// Lets host code read and write tensors of a stream's device, however big, through a little host memory. On a CPU
/// stream it works on the tensor itself: one part, no copy. Otherwise two page-locked parts take turns, so that host
/// work (a file's, mostly) runs beside the copies. All of a verb's copies are done when it returns or throws.
template <class T>
class HostParts {
 public:
  /// A part holds `elements` at most, or one unit where a unit is larger. `what` names the memory when there is none.
  HostParts(const Stream& stream, std::int64_t elements, std::string_view what)
      : stream_(stream), elements_(elements), what_(what) {}

  /// body(begin, part): part[i] = device[begin + i]; parts in order, each of whole units.
  template <class Body>
  void read(VectorView<const T> device, const Body& body, std::int64_t unit = 1) {
    if (stream_.is_cpu()) return run_once(device, body);
    const Plan plan = prepare(device.size, unit);
    const Settle settle{stream_};
    if (plan.count > 0) start_copy_to_host<T>(stream_, plan.part(device, 0), half(plan, 0));
    for (std::int64_t i = 0; i < plan.count; ++i) {
      synchronize(stream_);
      if (i + 1 < plan.count) start_copy_to_host<T>(stream_, plan.part(device, i + 1), half(plan, i + 1));
      body(plan.begin(i), VectorView<const T>(half(plan, i)));
    }
  }

  /// body(begin, part) fills all of part, which becomes device[begin + i].
  template <class Body>
  void write(VectorView<T> device, const Body& body, std::int64_t unit = 1) {
    if (stream_.is_cpu()) return run_once(device, body);
    const Plan plan = prepare(device.size, unit);
    const Settle settle{stream_};
    for (std::int64_t i = 0; i < plan.count; ++i) {
      body(plan.begin(i), half(plan, i));
      synchronize(stream_);  // the other half has arrived and may be filled next
      copy_to_device<T>(stream_, half(plan, i), plan.part(device, i));
    }
  }

  /// body(begin, part) finds device[begin + i] in part[i] and may change it.
  template <class Body>
  void change(VectorView<T> device, const Body& body, std::int64_t unit = 1) {
    write(
        device,
        [&](std::int64_t begin, VectorView<T> part) {
          if (!stream_.is_cpu()) copy_to_host<T>(stream_, device.slice(begin, part.size), part);
          body(begin, part);
        },
        unit);
  }

 private:
  struct Plan {
    std::int64_t size, step, count;
    [[nodiscard]] std::int64_t begin(std::int64_t i) const { return i * step; }
    [[nodiscard]] std::int64_t length(std::int64_t i) const { return std::min(step, size - begin(i)); }
    template <class U>
    [[nodiscard]] VectorView<U> part(VectorView<U> whole, std::int64_t i) const {
      return whole.slice(begin(i), length(i));
    }
  };
  /// Page-locked memory may not be reused or freed while a copy is on its way, not even after an error.
  struct Settle {
    const Stream& stream;
    ~Settle() {
      try {
        synchronize(stream);
      } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): the device is lost, the first error is told
      }
    }
  };

  template <class View, class Body>
  static void run_once(View device, const Body& body) {
    if (device.size > 0) body(std::int64_t{0}, device);
  }
  [[nodiscard]] Plan prepare(std::int64_t size, std::int64_t unit) {
    const std::int64_t step = std::max(unit, elements_ / unit * unit);
    const std::int64_t needed = 2 * std::min(step, size);
    if (memory_.size() < needed) {
      memory_ = {};
      memory_ = HostBuffer<T>(stream_, needed, what_);
    }
    return {size, step, (size + step - 1) / step};
  }
  [[nodiscard]] VectorView<T> half(const Plan& plan, std::int64_t i) {
    return memory_.view().slice(i % 2 * (memory_.size() / 2), plan.length(i));
  }

  Stream stream_;
  std::int64_t elements_;
  std::string_view what_;
  HostBuffer<T> memory_;
};

}  // namespace reprise
