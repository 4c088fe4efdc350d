#include "tests/support/cuda_emulation/settings.hpp"

#include <mutex>
#include <stdexcept>
#include <string>

namespace cuda_emulation {
namespace {

struct Shared {
  std::mutex mutex;
  Settings value;
};

Shared& shared() {
  static Shared instance;
  return instance;
}

}  // namespace

Settings settings() {
  const std::lock_guard lock(shared().mutex);
  return shared().value;
}

void set_settings(const Settings& settings) {
  const std::lock_guard lock(shared().mutex);
  shared().value = settings;
}

Settings parse_settings(std::string_view text) {
  Settings result;
  while (!text.empty()) {
    const auto comma = text.find(',');
    const std::string word(text.substr(0, comma));
    text = comma == std::string_view::npos ? std::string_view{} : text.substr(comma + 1);
    if (word == "ascending") {
      result.order = Order::kAscending;
    } else if (word == "descending") {
      result.order = Order::kDescending;
    } else if (word.starts_with("shuffled=")) {
      result.order = Order::kShuffled;
      result.seed = std::stoull(word.substr(9));
    } else if (word == "late") {
      result.late_streams = true;
    } else if (word != "eager") {
      throw std::invalid_argument("'" + word + "' is no setting: ascending, descending, shuffled=<seed>, eager, late");
    }
  }
  return result;
}

}  // namespace cuda_emulation
