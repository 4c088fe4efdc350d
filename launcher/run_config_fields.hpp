#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "launcher/run_config.hpp"

namespace reprise {

/// The member of a RunConfig that a key names; the alternatives are all the types that keys have.
using FieldValue =
    std::variant<bool*, std::int64_t*, double*, std::string*, std::vector<std::string>*, std::vector<double>*>;

/// The values that a key may have. Each part restricts only the types that it can apply to.
struct LegalValues {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
  bool above_low = false, below_high = false;  ///< the bound itself is not legal
  std::optional<double> or_value = {};         ///< legal beside the range
  std::vector<std::string_view> choices = {};  ///< of a string
  bool not_empty = false;                      ///< a string
  std::size_t length = 0;                      ///< of a list; 0 = any
};

/// One key of the run file. The list of these is all that parsing, printing, comments, the check for unknown keys,
/// ranges, `differences` and `notes` know of the keys.
struct Field {
  std::string_view section, key;
  FieldValue (*value)(RunConfig& config);
  std::string_view comment;
  LegalValues legal = {};

  [[nodiscard]] std::string name() const { return std::string(section) + "." + std::string(key); }
};

/// All keys in the order of the run file; keys of one section are neighbours.
[[nodiscard]] std::span<const Field> run_config_fields();

/// The value as TOML writes it; numbers by shortest round trip.
[[nodiscard]] std::string to_toml_value(const FieldValue& value);
/// A TOML basic string.
[[nodiscard]] std::string toml_quoted(std::string_view text);
/// Whether the value is legal.
[[nodiscard]] bool is_legal(const Field& field, const FieldValue& value);
/// "one of \"a\", \"b\"", "at least 1", "in (0, 90], or 180": what to write instead of an illegal value.
[[nodiscard]] std::string describe(const LegalValues& legal);

}  // namespace reprise
