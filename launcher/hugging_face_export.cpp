#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "core/strict_json.hpp"
#include "core/transfer.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/output_folder.hpp"

namespace reprise {

namespace {

const Stream kHost{CpuStream{}};

constexpr std::int64_t kCopyBytes = std::int64_t{4} << 20;

/// The block of a parameter that one tp rank holds, and whether the rank is the one of its copies that sends it.
struct Block {
  Range rows, cols;
  bool sends = false;
};

/// blocks[parameter][tp rank], the same on every rank. One all-gather.
template <class T>
std::vector<std::vector<Block>> exchange_blocks(Communicator& tp, const ParameterSet<T>& parameters) {
  std::vector<std::int64_t> own;
  for (const ParameterSpec& spec : parameters.specs()) {
    own.insert(own.end(), {spec.row_begin, spec.row_end, spec.col_begin, spec.col_end});
  }
  std::vector<std::int64_t> all(own.size() * static_cast<std::size_t>(tp.size()));
  tp.all_gather<std::int64_t>(kHost, own, all);
  std::vector<std::vector<Block>> blocks(parameters.specs().size());
  for (std::size_t p = 0; p < blocks.size(); ++p) {
    std::int64_t covered = 0;
    for (std::size_t r = 0; r < static_cast<std::size_t>(tp.size()); ++r) {
      const std::int64_t* bounds = all.data() + r * own.size() + 4 * p;
      Block block{{bounds[0], bounds[1]}, {bounds[2], bounds[3]}};
      block.sends = std::none_of(blocks[p].begin(), blocks[p].end(), [&](const Block& earlier) {
        return earlier.rows == block.rows && earlier.cols == block.cols;
      });
      if (block.sends) covered += block.rows.size() * block.cols.size();
      blocks[p].push_back(block);
    }
    const ParameterSpec& spec = parameters.specs()[p];
    REPRISE_CHECK(covered == spec.global_size(), "the ranks hold {} of {} elements of {}", covered, spec.global_size(),
                  spec.name);
  }
  return blocks;
}

/// Rows `piece` of a whole parameter, on tp rank 0 (empty elsewhere). `own`: on the stream's device. One all-to-all.
template <class T>
std::vector<T> gather_rows(const Stream& stream, Communicator& tp, const std::vector<Block>& blocks,
                           MatrixView<const T> own, std::int64_t global_cols, Range piece) {
  const auto size = static_cast<std::size_t>(tp.size()), rank = static_cast<std::size_t>(tp.rank());
  const auto part = [&](std::size_t r) { return blocks[r].sends ? intersect(blocks[r].rows, piece) : Range{}; };
  std::vector<std::int64_t> send_counts(size, 0), receive_counts(size, 0);
  const Range own_part = part(rank);
  send_counts[0] = own_part.size() * own.cols;
  if (rank == 0) {
    for (std::size_t r = 0; r < size; ++r) receive_counts[r] = part(r).size() * blocks[r].cols.size();
  }
  const std::int64_t total = std::accumulate(receive_counts.begin(), receive_counts.end(), std::int64_t{0});
  std::vector<T> received(static_cast<std::size_t>(total));
  const std::int64_t first = own_part.size() == 0 ? 0 : own_part.begin - blocks[rank].rows.begin;
  const auto sent = on_host(stream, own.row_range(first, own_part.size()).flat());
  tp.all_to_all<T>(kHost, sent.view(), send_counts, received, receive_counts);
  if (rank != 0) return {};

  std::vector<T> rows(static_cast<std::size_t>(piece.size() * global_cols));
  const T* source = received.data();
  for (std::size_t r = 0; r < size; ++r) {
    const Range cols = blocks[r].cols;
    for (std::int64_t row = part(r).begin; row < part(r).end; ++row) {
      std::copy_n(source, cols.size(), rows.begin() + (row - piece.begin) * global_cols + cols.begin);
      source += cols.size();
    }
  }
  return rows;
}

std::string safetensors_name(const std::string& dtype) {
  if (dtype == "float32") return "F32";
  if (dtype == "bfloat16") return "BF16";
  require(dtype == "float16", ErrorKind::kUsage, "dtype = \"{}\": must be float32, bfloat16 or float16", dtype);
  return "F16";
}

/// The files of an export and the tensors in each, in order of the parameters.
struct ShardPlan {
  std::vector<std::string> files;
  std::vector<std::vector<SafetensorsTensor>> tensors;  // [files]
  std::vector<std::size_t> file_of;                     // [parameters]
  std::int64_t total_bytes = 0;
};

ShardPlan plan_shards(const std::vector<ParameterSpec>& specs, const WeightFiles& source,
                      const ExportOptions& options) {
  ShardPlan plan;
  std::int64_t bytes = 0;
  for (const ParameterSpec& spec : specs) {
    SafetensorsTensor tensor{spec.name, "", {spec.global_rows}};
    tensor.dtype = options.dtype.empty() ? source.entry(spec.name).dtype : safetensors_name(options.dtype);
    if (!spec.is_vector) tensor.shape.push_back(spec.global_cols);
    const std::int64_t tensor_bytes = spec.global_size() * safetensors_element_bytes(tensor.dtype);
    if (plan.tensors.empty() || (bytes > 0 && bytes + tensor_bytes > options.max_shard_bytes)) {
      plan.tensors.emplace_back();
      bytes = 0;
    }
    bytes += tensor_bytes;
    plan.total_bytes += tensor_bytes;
    plan.file_of.push_back(plan.tensors.size() - 1);
    plan.tensors.back().push_back(std::move(tensor));
  }
  const std::size_t count = plan.tensors.size();
  for (std::size_t f = 0; f < count; ++f) {
    plan.files.push_back(count == 1 ? "model.safetensors"
                                    : fmt::format("model-{:05}-of-{:05}.safetensors", f + 1, count));
  }
  return plan;
}

void write_index(const std::filesystem::path& folder, const ShardPlan& plan) {
  if (plan.files.size() < 2) return;
  nlohmann::json weight_map = nlohmann::json::object();
  for (std::size_t f = 0; f < plan.files.size(); ++f) {
    for (const SafetensorsTensor& tensor : plan.tensors[f]) weight_map[tensor.name] = plan.files[f];
  }
  const nlohmann::json index = {{"metadata", {{"total_size", plan.total_bytes}}}, {"weight_map", weight_map}};
  write_file_atomically(folder / "model.safetensors.index.json", index.dump(2) + "\n");
}

/// config.json with another dtype; unchanged to the byte when it already says so.
std::string config_with_dtype(const std::string& text, const std::string& dtype, const std::string& what) {
  nlohmann::ordered_json config = parse_ordered_json(text, what, ErrorKind::kUsage);
  bool named = false, changed = false;
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (!config.contains(key)) continue;
    named = true;
    changed = changed || config[key] != dtype;
    config[key] = dtype;
  }
  if (!named) config["torch_dtype"] = dtype;
  return named && !changed ? text : config.dump(2) + "\n";
}

void copy_file_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  const InputFile input(from, ErrorKind::kUsage);
  OutputFile output(to);
  std::vector<char> bytes(static_cast<std::size_t>(std::min(kCopyBytes, input.size())));
  for (std::int64_t begin = 0; begin < input.size(); begin += kCopyBytes) {
    const std::int64_t count = std::min(kCopyBytes, input.size() - begin);
    input.read(begin, bytes.data(), count);
    output.write(begin, bytes.data(), count);
  }
  output.finish();
}

bool is_weight_or_code(const std::string& name) {
  constexpr std::string_view kEndings[] = {".safetensors", ".index.json", ".bin",  ".pt", ".pth", ".gguf",
                                           ".h5",          ".msgpack",    ".onnx", ".py", ".part"};
  return name.starts_with('.') || std::any_of(std::begin(kEndings), std::end(kEndings),
                                              [&](std::string_view end) { return name.ends_with(end); });
}

void copy_companions(const std::filesystem::path& source, const std::filesystem::path& folder,
                     const std::string& dtype) {
  for (const auto& entry : std::filesystem::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || is_weight_or_code(name)) continue;
    if (name == "config.json" && !dtype.empty()) {
      const std::string text = read_text_file(entry.path(), ErrorKind::kUsage);
      write_file_atomically(folder / name, config_with_dtype(text, dtype, entry.path().string()));
    } else {
      copy_file_durably(entry.path(), folder / name);
    }
  }
}

}  // namespace

std::int64_t parse_byte_size(const std::string& text) {
  const std::map<std::string, std::int64_t> kUnits = {
      {"", 1}, {"K", 1000}, {"M", 1000'000}, {"G", 1000'000'000}, {"KI", 1 << 10}, {"MI", 1 << 20}, {"GI", 1 << 30}};
  std::int64_t number = 0, bytes = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, static_cast<const char*>(text.data() + text.size()));
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return std::toupper(c); });
  if (unit.ends_with('B')) unit.pop_back();
  const bool is_size = error == std::errc() && number > 0 && kUnits.contains(unit) &&
                       !__builtin_mul_overflow(number, kUnits.at(unit), &bytes);
  require(is_size, ErrorKind::kUsage, "\"{}\" is no size: give bytes, or a number with K, M, G, Ki, Mi or Gi, e.g. 5GB",
          text);
  return bytes;
}

template <class T>
void export_hugging_face(const ProcessGroups& groups, ParameterSet<T>& parameters, const std::filesystem::path& source,
                         const std::filesystem::path& output, const ExportOptions& options) {
  if (groups.dp_rank() != 0) return;
  if (!options.dtype.empty()) (void)safetensors_name(options.dtype);
  Communicator& tp = *groups.tp;
  const bool writes = tp.rank() == 0;
  const auto blocks = exchange_blocks(tp, parameters);

  ShardPlan plan;
  std::filesystem::path part;
  std::optional<SafetensorsWriter> writer;
  if (writes) {
    // A trailing slash would put the .part folder inside the output.
    part = begin_folder(std::filesystem::absolute(output / "").parent_path());
    plan = plan_shards(parameters.specs(), WeightFiles(source), options);
  }
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    const auto index = static_cast<std::size_t>(p);
    if (writes && (p == 0 || plan.file_of[index] != plan.file_of[index - 1])) {
      if (writer) writer->finish();
      const std::size_t file = plan.file_of[index];
      writer.emplace(part / plan.files[file], plan.tensors[file], std::map<std::string, std::string>{{"format", "pt"}});
    }
    const ParameterSpec& spec = parameters.spec(p);
    const std::int64_t row_bytes = std::max<std::int64_t>(1, spec.global_cols * static_cast<std::int64_t>(sizeof(T)));
    const std::int64_t step = std::max<std::int64_t>(1, options.piece_bytes / row_bytes);
    for (std::int64_t row = 0; row < spec.global_rows; row += step) {
      const Range piece{row, std::min(row + step, spec.global_rows)};
      const std::vector<T> rows =
          gather_rows<T>(parameters.stream(), tp, blocks[index], parameters.value(p), spec.global_cols, piece);
      if (writes) writer->write<T>(spec.name, rows);
    }
  }
  if (writes) {
    if (writer) writer->finish();
    write_index(part, plan);
    copy_companions(source, part, options.dtype);
    finish_folder(part, output);
  }
  tp.barrier();  // no rank is done before the folder is there
}

template void export_hugging_face<float>(const ProcessGroups&, ParameterSet<float>&, const std::filesystem::path&,
                                         const std::filesystem::path&, const ExportOptions&);
template void export_hugging_face<BFloat16>(const ProcessGroups&, ParameterSet<BFloat16>&, const std::filesystem::path&,
                                            const std::filesystem::path&, const ExportOptions&);

}  // namespace reprise
