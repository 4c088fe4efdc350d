#include "launcher/checkpoint_manifest.hpp"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "core/file_io.hpp"
#include "core/sha256.hpp"
#include "core/strict_json.hpp"

namespace reprise {

namespace {

using nlohmann::json;

constexpr const char* kFormat = "reprise-checkpoint";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 48;  // of a tensor; sums over pieces cannot overflow
constexpr std::int64_t kMaxManifestBytes = std::int64_t{1} << 30;

std::int64_t integer(const json& value) {
  if (!value.is_number_integer()) throw std::invalid_argument("an integer was expected, not " + value.dump());
  return value.get<std::int64_t>();
}

json json_of(const StoredFile& file) {
  json pieces = json::array();
  for (const StoredPiece& p : file.pieces) {
    pieces.push_back(
        {p.parameter, p.rows.begin, p.rows.end, p.cols.begin, p.cols.end, p.elements.begin, p.elements.end});
  }
  return {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}, {"pieces", pieces}};
}

StoredFile file_of(const json& value) {
  StoredFile file{
      value.at("name").get<std::string>(), integer(value.at("bytes")), value.at("sha256").get<std::string>(), {}};
  for (const json& p : value.at("pieces")) {
    const auto at = [&](std::size_t i) { return integer(p.at(i)); };
    file.pieces.push_back({at(0), {at(1), at(2)}, {at(3), at(4)}, {at(5), at(6)}});
  }
  return file;
}

json json_of(const TrainerState& state) {
  return {{"step", state.step},
          {"next_sample", state.next_sample},
          {"steps_taken", state.steps_taken},
          {"skips", state.skips},
          {"skips_in_row", state.skips_in_row},
          {"metrics_bytes", state.metrics_bytes},
          {"best_eval", state.best_eval},
          {"best_step", state.best_step},
          {"run_toml", state.run_toml},
          {"model_fingerprint", state.model_fingerprint}};
}

TrainerState state_of(const json& value) {
  TrainerState state;
  state.step = integer(value.at("step"));
  state.next_sample = integer(value.at("next_sample"));
  state.steps_taken = integer(value.at("steps_taken"));
  state.skips = integer(value.at("skips"));
  state.skips_in_row = integer(value.at("skips_in_row"));
  state.metrics_bytes = integer(value.at("metrics_bytes"));
  state.best_eval = value.at("best_eval").get<double>();
  state.best_step = integer(value.at("best_step"));
  state.run_toml = value.at("run_toml").get<std::string>();
  state.model_fingerprint = value.at("model_fingerprint").get<std::string>();
  return state;
}

CheckpointManifest manifest_of(const json& value) {
  CheckpointManifest manifest;
  manifest.tensor = static_cast<int>(integer(value.at("layout").at("tensor")));
  manifest.data = static_cast<int>(integer(value.at("layout").at("data")));
  manifest.state = state_of(value.at("state"));
  for (const json& p : value.at("parameters")) {
    manifest.parameters.push_back({p.at("name").get<std::string>(), integer(p.at("shape").at(0)),
                                   integer(p.at("shape").at(1)), p.at("frozen").get<bool>()});
  }
  for (const json& file : value.at("files")) manifest.files.push_back(file_of(file));
  return manifest;
}

/// The product of two extents that a file claims; none when it cannot be a size.
std::optional<std::int64_t> product(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result) || result > kMaxElements) return std::nullopt;
  return result;
}

bool lies_in(Range part, std::int64_t size) {
  return 0 <= part.begin && part.begin < part.end && part.end <= size;
}

void check_bounds(const CheckpointManifest& manifest, const std::string& what) {
  for (const StoredParameter& p : manifest.parameters) {
    require(product(p.rows, p.cols).has_value(), ErrorKind::kCheckpoint,
            "{}: tensor \"{}\" cannot have the shape [{}, {}]", what, p.name, p.rows, p.cols);
  }
  for (const StoredFile& file : manifest.files) {
    const bool is_plain = !file.name.empty() && file.name.find('/') == std::string::npos && file.name[0] != '.';
    require(is_plain && file.bytes >= 0, ErrorKind::kCheckpoint,
            "{}: \"{}\" ({} bytes) cannot be a file of this folder", what, file.name, file.bytes);
    for (const StoredPiece& piece : file.pieces) {
      require(0 <= piece.parameter && piece.parameter < static_cast<std::int64_t>(manifest.parameters.size()),
              ErrorKind::kCheckpoint, "{}: {} has a piece of tensor {} of {}", what, file.name, piece.parameter,
              manifest.parameters.size());
      const StoredParameter& parameter = manifest.parameters[static_cast<std::size_t>(piece.parameter)];
      require(lies_in(piece.rows, parameter.rows) && lies_in(piece.cols, parameter.cols) &&
                  lies_in(piece.elements, piece.rows.size() * piece.cols.size()),
              ErrorKind::kCheckpoint, "{}: a piece of \"{}\" in {} lies outside of the tensor", what, parameter.name,
              file.name);
    }
  }
}

/// A piece is at most three rectangles of the global tensor: the rest of its first row, whole rows, part of a last one.
struct Rectangle {
  Range rows, cols;
};

void append_rectangles(const StoredPiece& piece, std::vector<Rectangle>& rectangles) {
  const std::int64_t width = piece.cols.size();
  std::int64_t begin = piece.elements.begin;
  while (begin < piece.elements.end) {
    const std::int64_t row = begin / width, column = begin % width;
    const std::int64_t rows = column == 0 ? (piece.elements.end - begin) / width : 0;
    const std::int64_t count = rows > 0 ? rows * width : std::min(width - column, piece.elements.end - begin);
    const Range cols = rows > 0 ? Range{0, width} : Range{column, column + count};
    rectangles.push_back({{piece.rows.begin + row, piece.rows.begin + row + std::max<std::int64_t>(1, rows)},
                          {piece.cols.begin + cols.begin, piece.cols.begin + cols.end}});
    begin += count;
  }
}

bool any_overlap(std::vector<Rectangle> rectangles) {
  std::sort(rectangles.begin(), rectangles.end(),
            [](const Rectangle& a, const Rectangle& b) { return a.rows.begin < b.rows.begin; });
  for (std::size_t i = 0; i < rectangles.size(); ++i) {
    for (std::size_t j = i + 1; j < rectangles.size() && rectangles[j].rows.begin < rectangles[i].rows.end; ++j) {
      if (intersect(rectangles[i].cols, rectangles[j].cols).size() > 0) return true;
    }
  }
  return false;
}

}  // namespace

std::string tensor_name(const std::string& parameter, const std::string& kind, const StoredPiece& piece) {
  return fmt::format("{}/{}/{}", parameter, kind, piece.elements.begin);
}

std::string to_json(const StoredFile& file) {
  return json_of(file).dump();
}

StoredFile stored_file_from_json(const std::string& text, const std::string& what) {
  return file_of(parse_strict_json(text, what, ErrorKind::kInternal));
}

std::string to_json(const CheckpointManifest& manifest) {
  json value{{"format", kFormat},
             {"version", kVersion},
             {"layout", {{"tensor", manifest.tensor}, {"data", manifest.data}}},
             {"state", json_of(manifest.state)},
             {"parameters", json::array()},
             {"files", json::array()}};
  for (const StoredParameter& p : manifest.parameters) {
    value["parameters"].push_back({{"name", p.name}, {"shape", {p.rows, p.cols}}, {"frozen", p.frozen}});
  }
  for (const StoredFile& file : manifest.files) value["files"].push_back(json_of(file));
  const std::string hash = sha256_hex(value.dump());  // keys are sorted, so a reader gets the same text
  value["sha256"] = hash;
  return value.dump(1) + "\n";
}

CheckpointManifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "manifest.json";
  json value = parse_strict_json(read_text_file(path, ErrorKind::kCheckpoint, kMaxManifestBytes), path.string(),
                                 ErrorKind::kCheckpoint);
  try {
    require(value.is_object() && value.value("format", "") == kFormat, ErrorKind::kCheckpoint,
            "{}: not the manifest of a checkpoint of this program", path.string());
    require(integer(value.at("version")) <= kVersion, ErrorKind::kCheckpoint,
            "{}: written by a newer version (format {}, this program reads up to {})", path.string(),
            integer(value.at("version")), kVersion);
    const std::string hash = value.at("sha256").get<std::string>();
    value.erase("sha256");
    require(sha256_hex(value.dump()) == hash, ErrorKind::kCheckpoint,
            "{}: damaged: its contents do not have the SHA-256 that it states", path.string());
    CheckpointManifest manifest = manifest_of(value);
    check_bounds(manifest, path.string());
    return manifest;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // the library's own, for keys and types
    fail(ErrorKind::kCheckpoint, "{}: damaged: {}", path.string(), error.what());
  }
}

std::vector<std::string> coverage_problems(const CheckpointManifest& manifest) {
  std::vector<std::vector<Rectangle>> rectangles(manifest.parameters.size());
  std::vector<std::int64_t> covered(manifest.parameters.size(), 0);
  for (const StoredFile& file : manifest.files) {
    for (const StoredPiece& piece : file.pieces) {
      const auto p = static_cast<std::size_t>(piece.parameter);
      append_rectangles(piece, rectangles[p]);
      covered[p] += piece.elements.size();
    }
  }
  std::vector<std::string> problems;
  for (std::size_t p = 0; p < manifest.parameters.size(); ++p) {
    const StoredParameter& parameter = manifest.parameters[p];
    const std::int64_t wanted = parameter.frozen ? 0 : parameter.rows * parameter.cols;
    if (covered[p] != wanted) {
      problems.push_back(fmt::format("manifest.json: the pieces of \"{}\" hold {} elements of {}", parameter.name,
                                     covered[p], wanted));
    } else if (any_overlap(std::move(rectangles[p]))) {
      problems.push_back(fmt::format("manifest.json: pieces of \"{}\" overlap", parameter.name));
    }
  }
  return problems;
}

std::string file_problem(const std::filesystem::path& folder, const StoredFile& file) {
  const std::filesystem::path path = folder / file.name;
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) return fmt::format("{}: {}", path.string(), error.message());
  if (static_cast<std::int64_t>(bytes) != file.bytes) {
    return fmt::format("{}: {} bytes where the manifest states {}", path.string(), bytes, file.bytes);
  }
  try {
    if (sha256_file(path, ErrorKind::kCheckpoint) == file.sha256) return {};
  } catch (const Error& unreadable) {
    return unreadable.what();
  }
  return fmt::format("{}: damaged: its SHA-256 is not the one in the manifest", path.string());
}

std::string step_folder_name(std::int64_t step) {
  return fmt::format("step-{:08}", step);
}

std::int64_t step_of_folder_name(const std::string& name) {
  std::int64_t step = -1;
  if (name.rfind("step-", 0) != 0) return -1;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + 5, end, step);
  return error == std::errc() && stop == end && step >= 0 && step_folder_name(step) == name ? step : -1;
}

}  // namespace reprise
