#include "core/error.hpp"

namespace reprise::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ErrorKind::kInternal, fmt::format("{}:{}: check failed: {}: {}", file, line, condition, message));
}

}  // namespace reprise::detail
