#include "launcher/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/dtype.hpp"
#include "core/half.hpp"

namespace reprise {

static_assert(std::endian::native == std::endian::little, "safetensors buffers are little-endian");

namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;
constexpr std::int64_t kShortestRun = 512;  ///< bytes worth a system call of their own

std::string quote(const std::string& name) {
  return nlohmann::json(name).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

/// Takes the header's JSON event by event, so that nothing is kept but what the format allows.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(const std::string& path, ErrorKind kind) : path_(path), kind_(kind) {}

  struct Fields {
    std::optional<std::string> dtype;
    std::optional<std::vector<std::int64_t>> shape, offsets;
  };
  std::map<std::string, Fields> tensors;
  std::map<std::string, std::string> metadata;

  bool start_object(std::size_t /*size*/) override {
    if (depth_ == 1 && name_ == "__metadata__") {
      if (std::exchange(has_metadata_, true)) refuse("\"__metadata__\" appears twice");
    } else if (depth_ == 1) {
      const auto [entry, is_new] = tensors.try_emplace(name_);
      if (!is_new) refuse(fmt::format("tensor {} appears twice", quote(name_)));
      current_ = &entry->second;
    } else if (depth_ != 0) {
      refuse(fmt::format("an object inside {}", quote(name_)));
    }
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    if (depth_ == 1 && current_ != nullptr) {
      if (!current_->dtype || !current_->shape || !current_->offsets) {
        refuse(fmt::format("tensor {} lacks dtype, shape or data_offsets", quote(name_)));
      }
      current_ = nullptr;
    }
    return true;
  }
  bool key(std::string& key) override {
    (depth_ == 1 ? name_ : field_) = key;
    return true;
  }
  bool string(std::string& value) override {
    if (depth_ == 2 && current_ == nullptr) {
      if (!metadata.emplace(field_, value).second) refuse(fmt::format("metadata {} appears twice", quote(field_)));
    } else if (depth_ == 2 && field_ == "dtype") {
      if (current_->dtype) refuse(fmt::format("tensor {} has dtype twice", quote(name_)));
      current_->dtype = value;
    } else {
      refuse_value("a string");
    }
    return true;
  }
  bool start_array(std::size_t /*size*/) override {
    auto* list = current_ == nullptr || depth_ != 2 || list_ != nullptr ? nullptr
                 : field_ == "shape"                                    ? &current_->shape
                 : field_ == "data_offsets"                             ? &current_->offsets
                                                                        : nullptr;
    if (list == nullptr) refuse_value("an array");
    if (list->has_value()) refuse(fmt::format("tensor {} has {} twice", quote(name_), field_));
    list_ = &list->emplace();
    return true;
  }
  bool end_array() override {
    list_ = nullptr;
    return true;
  }
  bool number_unsigned(std::uint64_t value) override {
    if (list_ == nullptr) refuse_value("a number");
    if (value > static_cast<std::uint64_t>(INT64_MAX)) refuse_value(std::to_string(value));
    list_->push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_integer(std::int64_t value) override { refuse_value(std::to_string(value)); }
  bool number_float(double /*value*/, const std::string& text) override { refuse_value(text); }
  bool null() override { refuse_value("null"); }
  bool boolean(bool value) override { refuse_value(value ? "true" : "false"); }
  bool binary(binary_t& /*value*/) override { refuse_value("binary data"); }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::json::exception& error) override {
    refuse(fmt::format("header byte {}: {}", position, error.what()));
  }

 private:
  [[noreturn]] void refuse(const std::string& flaw) const { fail(kind_, "{}: {}", path_, flaw); }
  [[noreturn]] void refuse_value(const std::string& value) const {
    if (depth_ < 2) refuse(fmt::format("{} where the header must have an object", value));
    refuse(fmt::format("{}: field {} cannot be {}", quote(name_), quote(field_), value));
  }

  std::string path_;
  ErrorKind kind_;
  int depth_ = 0;
  bool has_metadata_ = false;
  std::string name_, field_;
  Fields* current_ = nullptr;  // the tensor that is open
  std::vector<std::int64_t>* list_ = nullptr;
};

/// output[i] = element i of the stored bytes, which need not be aligned.
template <class Stored, class T, class Convert>
void convert_elements(const std::uint8_t* bytes, std::int64_t count, T* output, Convert convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, bytes + i * static_cast<std::int64_t>(sizeof(Stored)), sizeof(Stored));
    output[i] = static_cast<T>(convert(stored));
  }
}

template <class T>
void convert(std::string_view dtype, const std::uint8_t* bytes, std::int64_t count, T* output) {
  if (dtype == safetensors_dtype<T>()) {
    std::memcpy(output, bytes, static_cast<std::size_t>(count) * sizeof(T));
  } else if (dtype == "F32") {
    convert_elements<float>(bytes, count, output, [](float value) { return value; });
  } else if (dtype == "BF16") {
    convert_elements<BFloat16>(bytes, count, output, [](BFloat16 value) { return static_cast<float>(value); });
  } else {
    convert_elements<std::uint16_t>(bytes, count, output, half_to_float);
  }
}

}  // namespace

std::int64_t safetensors_element_bytes(std::string_view dtype) {
  static const std::map<std::string_view, std::int64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},   {"F8_E4M3", 1},     {"F8_E5M2", 1},    {"F8_E8M0", 1}, {"I16", 2},
      {"U16", 2},  {"F16", 2}, {"BF16", 2}, {"I32", 4},         {"U32", 4},        {"F32", 4},     {"F64", 8},
      {"I64", 8},  {"U64", 8}, {"C64", 8},  {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}};
  const auto entry = kBytes.find(dtype);
  return entry == kBytes.end() ? 0 : entry->second;
}

template <>
std::string_view safetensors_dtype<float>() {
  return "F32";
}
template <>
std::string_view safetensors_dtype<BFloat16>() {
  return "BF16";
}

std::int64_t SafetensorsEntry::cols() const {
  std::int64_t product = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) product *= shape[i];
  return product;
}

SafetensorsReader::SafetensorsReader(std::filesystem::path path, ErrorKind kind) : file_(std::move(path), kind) {
  if (file_.size() < 8) refuse(fmt::format("{} bytes are too few for a safetensors file", file_.size()));
  std::uint64_t header_bytes = 0;
  file_.read(0, &header_bytes, 8);
  if (header_bytes > kMaxHeaderBytes) {
    refuse(fmt::format("header of {} bytes, at most {} are allowed", header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > static_cast<std::uint64_t>(file_.size() - 8)) {
    refuse(fmt::format("header of {} bytes in a file of {}", header_bytes, file_.size()));
  }
  std::string header(header_bytes, '\0');
  file_.read(8, header.data(), static_cast<std::int64_t>(header_bytes));
  buffer_begin_ = 8 + static_cast<std::int64_t>(header_bytes);
  parse_header(header);
  check_offsets();
}

void SafetensorsReader::refuse(const std::string& flaw) const {
  fail(file_.kind(), "{}: {}", path().string(), flaw);
}

void SafetensorsReader::parse_header(const std::string& header) {
  if (header.empty() || header.front() != '{') refuse("the header does not begin with '{'");
  HeaderHandler handler(path().string(), file_.kind());
  nlohmann::json::sax_parse(header, &handler);
  metadata_ = std::move(handler.metadata);
  for (auto& [name, fields] : handler.tensors) {
    if (fields.offsets->size() != 2) refuse(fmt::format("tensor {}: data_offsets must be 2 numbers", quote(name)));
    entries_.push_back(
        {name, std::move(*fields.dtype), std::move(*fields.shape), fields.offsets->front(), fields.offsets->back()});
  }
  std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  for (std::size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].name, i);
}

void SafetensorsReader::check_offsets() const {
  const std::int64_t buffer_bytes = file_.size() - buffer_begin_;
  std::int64_t expected = 0;
  for (const SafetensorsEntry& entry : entries_) {
    const std::string name = quote(entry.name);
    const std::int64_t element = safetensors_element_bytes(entry.dtype);
    if (element == 0) refuse(fmt::format("tensor {}: dtype {} is not supported", name, quote(entry.dtype)));
    std::int64_t bytes = element;  // with every zero extent taken as 1, so that cols() cannot overflow either
    for (const std::int64_t extent : entry.shape) {
      if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(extent, 1), &bytes)) {
        refuse(fmt::format("tensor {}: shape [{}] overflows", name, fmt::join(entry.shape, ", ")));
      }
    }
    if (std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end()) bytes = 0;
    if (entry.begin != expected) {
      refuse(fmt::format("tensor {} begins at byte {} of the buffer, the one before ends at {}", name, entry.begin,
                         expected));
    }
    if (entry.end < entry.begin || entry.end > buffer_bytes) {
      refuse(fmt::format("tensor {}: bytes [{}, {}) of a buffer of {}", name, entry.begin, entry.end, buffer_bytes));
    }
    if (entry.bytes() != bytes) {
      refuse(fmt::format("tensor {}: {} bytes for shape [{}] of {}, which needs {}", name, entry.bytes(),
                         fmt::join(entry.shape, ", "), entry.dtype, bytes));
    }
    expected = entry.end;
  }
  if (expected != buffer_bytes) {
    refuse(fmt::format("the tensors end at byte {} of a buffer of {}", expected, buffer_bytes));
  }
}

const SafetensorsEntry* SafetensorsReader::find(const std::string& name) const {
  const auto entry = index_.find(name);
  return entry == index_.end() ? nullptr : &entries_[entry->second];
}

const SafetensorsEntry& SafetensorsReader::at(const std::string& name) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr) refuse(fmt::format("no tensor {}", quote(name)));
  return *entry;
}

void SafetensorsReader::read_bytes(const SafetensorsEntry& entry, std::int64_t begin, std::int64_t count,
                                   void* output) const {
  REPRISE_CHECK(begin >= 0 && count >= 0 && begin + count <= entry.bytes(), "bytes [{}, {}) of {} with {}", begin,
                begin + count, entry.name, entry.bytes());
  file_.read(buffer_begin_ + entry.begin + begin, output, count);
}

template <class T>
void SafetensorsReader::read(const SafetensorsEntry& entry, Range rows, Range cols, MatrixView<T> output) const {
  if (entry.dtype != "F32" && entry.dtype != "BF16" && entry.dtype != "F16") {
    refuse(fmt::format("tensor {}: dtype {} where F32, BF16 or F16 is needed", quote(entry.name), entry.dtype));
  }
  const std::int64_t total_cols = entry.cols(), element = safetensors_element_bytes(entry.dtype);
  REPRISE_CHECK(0 <= rows.begin && rows.begin <= rows.end && rows.end <= entry.rows() && 0 <= cols.begin &&
                    cols.begin <= cols.end && cols.end <= total_cols && output.rows == rows.size() &&
                    output.cols == cols.size(),
                "rows [{}, {}) and columns [{}, {}) of {} [{}, {}] into [{}, {}]", rows.begin, rows.end, cols.begin,
                cols.end, entry.name, entry.rows(), total_cols, output.rows, output.cols);
  if (output.size() == 0) return;

  std::vector<std::uint8_t> chunk;
  const auto read_run = [&](std::int64_t first, std::int64_t count, T* target) {  // consecutive elements
    for (std::int64_t done = 0; done < count; done += kChunkBytes / element) {
      const std::int64_t part = std::min(kChunkBytes / element, count - done);
      if (entry.dtype == safetensors_dtype<T>()) {
        read_bytes(entry, (first + done) * element, part * element, target + done);
      } else {
        chunk.resize(static_cast<std::size_t>(part * element));
        read_bytes(entry, (first + done) * element, part * element, chunk.data());
        convert<T>(entry.dtype, chunk.data(), part, target + done);
      }
    }
  };
  if (cols.size() == total_cols) {
    read_run(rows.begin * total_cols, output.size(), output.data);
  } else if (cols.size() * element >= kShortestRun || total_cols * element > kChunkBytes) {
    for (std::int64_t r = 0; r < output.rows; ++r) {
      read_run((rows.begin + r) * total_cols + cols.begin, cols.size(), output.row(r).data);
    }
  } else {  // short pieces: fewer system calls when whole rows are read
    const std::int64_t block = kChunkBytes / (total_cols * element);
    for (std::int64_t r = 0; r < output.rows; r += block) {
      const std::int64_t count = std::min(block, output.rows - r);
      chunk.resize(static_cast<std::size_t>(count * total_cols * element));
      read_bytes(entry, (rows.begin + r) * total_cols * element, count * total_cols * element, chunk.data());
      for (std::int64_t i = 0; i < count; ++i) {
        convert<T>(entry.dtype, chunk.data() + (i * total_cols + cols.begin) * element, cols.size(),
                   output.row(r + i).data);
      }
    }
  }
}

template void SafetensorsReader::read<float>(const SafetensorsEntry&, Range, Range, MatrixView<float>) const;
template void SafetensorsReader::read<BFloat16>(const SafetensorsEntry&, Range, Range, MatrixView<BFloat16>) const;

}  // namespace reprise
