#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace reprise {

/// What went wrong, as the exit code that the program ends with (docs/operations.md has the table).
enum class ErrorKind : int {
  kInternal = 1,       ///< a broken invariant: a defect of reprise itself
  kUsage = 2,          ///< run file, flags or model folder
  kData = 3,           ///< training data, or a damaged replay store
  kStoreMismatch = 4,  ///< a store of another model, tokenizer, data or setting
  kCheckpoint = 5,     ///< missing, damaged or foreign checkpoint
  kNonFinite = 6,      ///< NaN or Inf where training cannot go on
  kCommunication = 7,  ///< a collective failed, or a peer is gone
  kDisk = 8,           ///< full disk, no permission, failed write
  kPreempted = 75,     ///< checkpoint written, requeue me (EX_TEMPFAIL)
};

/// The one exception type of reprise. `what()` says what happened, where, and what to do next.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

  [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }
  [[nodiscard]] int exit_code() const noexcept { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

/// Memory could not be had; the message names what it was for, the shape and the bytes.
class OutOfMemory : public Error {
 public:
  explicit OutOfMemory(const std::string& message) : Error(ErrorKind::kInternal, message) {}
};

/// Throws Error(kind) with a message in fmt syntax.
template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws Error(kind) unless `condition`; for input that a user can get wrong.
template <class... Args>
void require(bool condition, ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]] {
    fail(kind, format, std::forward<Args>(args)...);
  }
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace detail

}  // namespace reprise

/// Invariants inside reprise: throws Error(kInternal) with file, line, condition and the fmt-formatted values.
#define REPRISE_CHECK(condition, ...)                                                              \
  do {                                                                                             \
    if (!(condition)) [[unlikely]] {                                                               \
      ::reprise::detail::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
    }                                                                                              \
  } while (false)
