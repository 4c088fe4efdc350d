#pragma once

#include <functional>
#include <vector>

#include "core/stream.hpp"
#include "core/transfer.hpp"

namespace reprise {

// Tests of kernels are written once and run on every device: they take their stream from here, put their input there
// with to_device(test_stream(), values) and compare what to_host(test_stream(), view) brings back. The program decides
// what the device is: the CPU in <folder>_tests, a GPU in <folder>_cuda_tests, the emulated one in
// <folder>_cuda_emulated_tests.

/// The stream of the calling thread, so of its rank where ranks are threads.
[[nodiscard]] const Stream& test_stream();

/// body(stream) for every way in which this device can do the same work: on the CPU every instruction set, with one
/// thread and with several; else two queues.
void on_every_stream(const std::function<void(const Stream&)>& body);

/// The values of a buffer, on the host.
template <class T>
[[nodiscard]] std::vector<T> to_host(const Buffer<T>& buffer) {
  return to_host(test_stream(), buffer.view());
}
template <class T>
[[nodiscard]] Buffer<T> to_device(const std::vector<T>& values) {
  return to_device(test_stream(), values);
}

}  // namespace reprise
