#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/host_parts.hpp"
#include "core/sha256.hpp"
#include "core/strict_json.hpp"
#include "launcher/hash_cache.hpp"
#include "launcher/hugging_face.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kPartElements = std::int64_t{8} << 20;  // on their way to a device
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

/// weight_map of an index: tensor name to file name. A file name may not lead out of the folder.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& path) {
  const nlohmann::json index = read_json_object(path, ErrorKind::kUsage);
  require(index.contains("weight_map") && index["weight_map"].is_object(), ErrorKind::kUsage,
          "{}: weight_map must be an object", path.string());
  std::map<std::string, std::string> files;
  for (const auto& [name, value] : index["weight_map"].items()) {
    require(value.is_string(), ErrorKind::kUsage, "{}: weight_map[\"{}\"] = {}: must be a file name", path.string(),
            name, value.dump());
    const auto& file = value.get_ref<const std::string&>();
    const bool is_plain = file.ends_with(".safetensors") && file.find('/') == std::string::npos &&
                          file.find('\\') == std::string::npos && file.find("..") == std::string::npos &&
                          file.find('\0') == std::string::npos;
    require(is_plain, ErrorKind::kUsage,
            "{}: weight_map[\"{}\"] = {}: must be the name of a .safetensors file in the same folder", path.string(),
            name, value.dump());
    files.emplace(name, file);
  }
  require(!files.empty(), ErrorKind::kUsage, "{}: weight_map is empty", path.string());
  return files;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<std::int64_t> shape_of(const ParameterSpec& spec) {
  return spec.is_vector ? std::vector<std::int64_t>{spec.global_rows}
                        : std::vector<std::int64_t>{spec.global_rows, spec.global_cols};
}

/// Up to ten of the entries, and how many there are.
void append_problem(std::string& problems, std::string_view title, const std::vector<std::string>& entries) {
  if (entries.empty()) return;
  const std::size_t shown = std::min<std::size_t>(entries.size(), 10);
  problems += fmt::format("\n  {} {}: {}{}", entries.size(), title,
                          fmt::join(entries.begin(), entries.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
                          shown < entries.size() ? ", ..." : "");
}

/// Buffers that old exports carry and that follow from config.json.
bool is_derived(const std::string& name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

/// A tied model may still carry its head; a head of its own would be lost without a word.
template <class T>
void check_tied_head(const WeightFiles& files, ParameterSet<T>& parameters) {
  const std::int64_t index = parameters.find(kEmbedding);
  if (index < 0 || !files.contains(kHead)) return;
  const ParameterSpec& spec = parameters.spec(index);
  const SafetensorsReader& file = files.file(kHead);
  const SafetensorsEntry& head = files.entry(kHead);
  bool equal = head.shape == shape_of(spec);
  const MatrixView<T> embedding = parameters.value(index);
  const std::int64_t block =
      std::max<std::int64_t>(1, (std::int64_t{1} << 20) / std::max<std::int64_t>(1, spec.cols()));
  std::vector<T> rows;
  for (std::int64_t begin = 0; equal && begin < spec.rows(); begin += block) {
    const std::int64_t count = std::min(block, spec.rows() - begin);
    rows.resize(static_cast<std::size_t>(count * spec.cols()));
    file.read<T>(head, {spec.row_begin + begin, spec.row_begin + begin + count}, {spec.col_begin, spec.col_end},
                 {rows, count, spec.cols()});
    const auto held = on_host(parameters.stream(), embedding.row_range(begin, count).flat());
    equal = std::memcmp(rows.data(), held.view().data, rows.size() * sizeof(T)) == 0;
  }
  require(equal, ErrorKind::kUsage,
          "{}: {} differs from {}, but config.json has tie_word_embeddings = true; set it to false or drop the head",
          file.path().string(), kHead, kEmbedding);
}

}  // namespace

WeightFiles::WeightFiles(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / kSingleFile)) {
    files_.emplace_back(folder / kSingleFile);
    for (const SafetensorsEntry& entry : files_.front().entries()) file_of_.emplace(entry.name, 0);
    return;
  }
  require(std::filesystem::exists(folder / kIndexFile), ErrorKind::kUsage,
          "{}: neither {} nor {} is there; weights in other formats must be converted to safetensors", folder.string(),
          kSingleFile, kIndexFile);
  const auto weight_map = read_weight_map(folder / kIndexFile);
  std::set<std::string> names;
  for (const auto& [name, file] : weight_map) names.insert(file);
  std::map<std::string, std::size_t> index;
  for (const std::string& name : names) {
    index.emplace(name, files_.size());
    files_.emplace_back(folder / name);
    for (const SafetensorsEntry& entry : files_.back().entries()) {
      const auto mapped = weight_map.find(entry.name);
      require(mapped != weight_map.end() && mapped->second == name, ErrorKind::kUsage,
              "{}: holds tensor {}, which {} {}", (folder / name).string(), entry.name, kIndexFile,
              mapped == weight_map.end() ? "does not list" : "places in " + mapped->second);
    }
  }
  for (const auto& [name, file] : weight_map) {
    require(files_[index[file]].find(name) != nullptr, ErrorKind::kUsage, "{}: no tensor {}, which {} places there",
            (folder / file).string(), name, kIndexFile);
    file_of_.emplace(name, index[file]);
  }
}

std::vector<std::string> WeightFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

const SafetensorsReader& WeightFiles::file(const std::string& name) const {
  const auto entry = file_of_.find(name);
  require(entry != file_of_.end(), ErrorKind::kUsage, "{}: no tensor {}", files_.front().path().parent_path().string(),
          name);
  return files_[entry->second];
}

const SafetensorsEntry& WeightFiles::entry(const std::string& name) const {
  return file(name).at(name);
}

std::string WeightFiles::dtype() const {
  std::map<std::string, std::int64_t> bytes;
  for (const SafetensorsReader& file : files_) {
    for (const SafetensorsEntry& entry : file.entries()) bytes[entry.dtype] += entry.bytes();
  }
  const auto most =
      std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? "F32" : most->first;
}

void check_weights(const WeightFiles& files, const std::filesystem::path& folder, bool tie_word_embeddings,
                   const std::vector<ParameterSpec>& specs) {
  std::vector<std::string> missing, unexpected, wrong;
  std::set<std::string> declared;
  for (const ParameterSpec& spec : specs) {
    declared.insert(spec.name);
    if (!files.contains(spec.name)) {
      missing.push_back(spec.name);
      continue;
    }
    const SafetensorsEntry& entry = files.entry(spec.name);
    const std::vector<std::int64_t> expected = shape_of(spec);
    if (entry.shape != expected) {
      wrong.push_back(
          fmt::format("{} is {}, config.json means {}", spec.name, shape_text(entry.shape), shape_text(expected)));
    }
  }
  for (const std::string& name : files.names()) {
    const bool is_tied_head = tie_word_embeddings && name == kHead;
    if (!declared.contains(name) && !is_derived(name) && !is_tied_head) unexpected.push_back(name);
  }
  std::string problems;
  append_problem(problems, "missing", missing);
  append_problem(problems, "unexpected", unexpected);
  append_problem(problems, "of another shape", wrong);
  require(problems.empty(), ErrorKind::kUsage, "{}: the weights do not fit config.json{}", folder.string(), problems);
}

template <class T>
void load_hugging_face(const std::filesystem::path& folder, bool tie_word_embeddings, ParameterSet<T>& parameters) {
  const WeightFiles files(folder);
  check_weights(files, folder, tie_word_embeddings, parameters.specs());
  HostParts<T> parts(parameters.stream(), kPartElements, "the loading of weights");
  for (std::int64_t i = 0; i < parameters.count(); ++i) {
    const ParameterSpec& spec = parameters.spec(i);
    const SafetensorsReader& file = files.file(spec.name);
    const SafetensorsEntry& entry = files.entry(spec.name);
    const auto read_rows = [&](std::int64_t begin, VectorView<T> part) {
      const std::int64_t row = spec.row_begin + begin / spec.cols(), rows = part.size / spec.cols();
      file.read<T>(entry, {row, row + rows}, {spec.col_begin, spec.col_end}, {part, rows, spec.cols()});
    };
    parts.write(parameters.value(i).flat(), read_rows, std::max<std::int64_t>(1, spec.cols()));
  }
  if (tie_word_embeddings) check_tied_head(files, parameters);
}

template void load_hugging_face<float>(const std::filesystem::path&, bool, ParameterSet<float>&);
template void load_hugging_face<BFloat16>(const std::filesystem::path&, bool, ParameterSet<BFloat16>&);

std::string model_fingerprint(const std::filesystem::path& folder, Communicator* world,
                              const std::filesystem::path& cache) {
  const WeightFiles files(folder);
  std::vector<std::filesystem::path> paths = {folder / "config.json"};
  for (const SafetensorsReader& file : files.files()) paths.push_back(file.path());
  const std::vector<std::string> hashes = cached_sha256_tree(paths, ErrorKind::kUsage, cache, world);
  std::string text;
  for (std::size_t i = 0; i < paths.size(); ++i) text += paths[i].filename().string() + " " + hashes[i] + "\n";
  return sha256_hex(text);
}

}  // namespace reprise
