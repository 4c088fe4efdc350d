#include "launcher/fault_injection.hpp"

#include <charconv>
#include <csignal>
#include <cstdlib>

#include "core/error.hpp"

namespace reprise {

namespace {

std::int64_t parse_count(std::string_view key, std::string_view value) {
  std::int64_t count = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  require(error == std::errc() && end == value.data() + value.size(), ErrorKind::kUsage,
          "REPRISE_FAULT: {} = \"{}\" is not a whole number", key, value);
  return count;
}

}  // namespace

FaultInjection FaultInjection::parse(std::string_view text, int rank) {
  FaultInjection fault;
  fault.armed_ = !text.empty();
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const std::size_t equals = item.find('=');
    require(equals != std::string_view::npos, ErrorKind::kUsage, "REPRISE_FAULT: \"{}\" is not key=value", item);
    const std::string_view key = item.substr(0, equals), value = item.substr(equals + 1);
    if (key == "rank") {
      fault.armed_ = fault.armed_ && parse_count(key, value) == rank;
    } else if (key == "action") {
      require(value == "kill" || value == "stop" || value == "nan", ErrorKind::kUsage,
              "REPRISE_FAULT: action = \"{}\": must be kill, stop or nan", value);
      fault.action_ = value;
    } else {
      fault.point_ = key;
      fault.count_ = parse_count(key, value);
    }
  }
  return fault;
}

FaultInjection FaultInjection::from_environment(int rank) {
  const char* text = std::getenv("REPRISE_FAULT");
  return parse(text == nullptr ? "" : text, rank);
}

bool FaultInjection::fire() const {
  if (action_ == "kill") std::raise(SIGKILL);
  if (action_ == "stop") std::raise(SIGUSR1);
  return action_ == "nan";
}

}  // namespace reprise
