#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace reprise::detail {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);
[[noreturn]] void cuda_failed(const char* file, int line, const char* call, cudaError_t error);
/// Names the kernel, its grid and its shared memory.
[[noreturn]] void launch_failed(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, cudaError_t error);

template <class T>
std::string text_of(const T& value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return std::to_string(value);
  } else {
    return std::string(std::string_view(value));
  }
}

template <class... Parts>
std::string join(const Parts&... parts) {
  return (std::string() + ... + text_of(parts));
}

}  // namespace reprise::detail

/// Calls a function of the CUDA runtime; throws Error that names call and reason.
#define REPRISE_CUDA(call)                                                      \
  do {                                                                          \
    const cudaError_t reprise_error = (call);                                   \
    if (reprise_error != cudaSuccess) [[unlikely]] {                            \
      ::reprise::detail::cuda_failed(__FILE__, __LINE__, #call, reprise_error); \
    }                                                                           \
  } while (false)

/// REPRISE_CHECK for .cu files, which cannot include fmt: the message is its parts one behind the other.
#define REPRISE_CUDA_CHECK(condition, ...)                                                                   \
  do {                                                                                                       \
    if (!(condition)) [[unlikely]] {                                                                         \
      ::reprise::detail::check_failed(__FILE__, __LINE__, #condition, ::reprise::detail::join(__VA_ARGS__)); \
    }                                                                                                        \
  } while (false)
