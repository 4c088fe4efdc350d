#include "core/strict_json.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

TEST(StrictJson, ParsesOrdinaryValues) {
  const auto value = parse_strict_json(R"({"a": [1, {"a": null}], "b": {"a": 2}})", "f", ErrorKind::kUsage);
  EXPECT_EQ(value["b"]["a"], 2);
}

TEST(StrictJson, RefusesWhatTheLibraryAlonePasses) {
  const auto refused = [](const std::string& text, const std::string& message) {
    expect_error(ErrorKind::kCheckpoint, {"f.json", message},
                 [&] { (void)parse_strict_json(text, "f.json", ErrorKind::kCheckpoint); });
  };
  refused(R"({"a": 1, "a": 2})", "\"a\" appears twice");
  refused(R"({"b": [{"a": 1, "a": 1}]})", "\"a\" appears twice");
  refused(std::string(100'000, '['), "more than 64 levels");
  refused("{", "not valid JSON");
  refused("{} {}", "not valid JSON");
  refused("{\"a\": \"\xff\"}", "not valid JSON");
  refused(R"({"a": NaN})", "not valid JSON");
  refused("", "not valid JSON");
}

TEST(StrictJson, OrderedKeepsTheOrder) {
  EXPECT_EQ(parse_ordered_json(R"({"b":1,"a":2})", "f", ErrorKind::kUsage).dump(), R"({"b":1,"a":2})");
}

}  // namespace
}  // namespace reprise
