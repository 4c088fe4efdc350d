#include "loss/replay_shard.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include "core/error.hpp"
#include "core/half.hpp"
#include "loss/hdf5_file.hpp"

namespace reprise {

namespace {

constexpr const char* kFormat = "reprise-store";
constexpr const char* kVersion = "1.0";

struct Problem {
  const char* dataset;
  std::string what;
};

bool is_probability(float value) {
  return value >= 0.0f && value <= 1.0001f;  // sums of rounded probabilities may pass 1
}

/// What is wrong with one record, if anything.
std::optional<Problem> problem_of(const SampleRecords& records, std::size_t t, std::int64_t vocab_size) {
  const auto begin = records.ids.begin() + records.id_begin[t], end = records.ids.begin() + records.id_begin[t + 1];
  const std::uint32_t position = records.position[t];
  if (t > 0 && position <= records.position[t - 1]) {
    return Problem{"position", fmt::format("position {} behind {}", position, records.position[t - 1])};
  }
  if (begin == end) return Problem{"id_ptr", fmt::format("the set of position {} is empty", position)};
  if (const auto at = std::adjacent_find(begin, end, std::greater_equal<>()); at != end) {
    return Problem{"gap", fmt::format("position {}: id {} behind {}", position, at[1], at[0])};
  }
  if (static_cast<std::int64_t>(end[-1]) >= vocab_size) {
    return Problem{"gap", fmt::format("position {}: id {} in a vocabulary of {}", position, end[-1], vocab_size)};
  }
  if (!std::binary_search(begin, end, records.gold[t])) {
    return Problem{"gold", fmt::format("position {}: gold {} is not in its set", position, records.gold[t])};
  }
  if (!is_probability(records.mass[t])) {
    return Problem{"mass", fmt::format("position {}: probability {}", position, records.mass[t])};
  }
  if (!is_probability(records.confidence[t])) {
    return Problem{"confidence", fmt::format("position {}: probability {}", position, records.confidence[t])};
  }
  return std::nullopt;
}

std::optional<Problem> problem_of(const SampleRecords& records, std::int64_t vocab_size) {
  for (std::size_t t = 0; t < records.position.size(); ++t) {
    if (auto problem = problem_of(records, t, vocab_size)) return problem;
  }
  return std::nullopt;
}

void append_varint(std::vector<std::uint8_t>& bytes, std::uint32_t value) {
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<std::uint8_t>(value | 0x80));
  bytes.push_back(static_cast<std::uint8_t>(value));
}

std::uint32_t take_varint(const std::uint8_t*& from) {
  std::uint32_t value = *from & 0x7fu;
  for (int shift = 7; (*from++ & 0x80) != 0; shift += 7) value |= (*from & 0x7fu) << shift;
  return value;
}

template <class T, class U>
void extend(std::vector<T>& to, const std::vector<U>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

// ---- in memory
// --------------------------------------------------------------------------------------------------------

void ReplayShard::append(const SampleRecords& records) {
  const std::size_t tokens = records.position.size();
  REPRISE_CHECK(records.gold.size() == tokens && records.flags.size() == tokens && records.mass.size() == tokens &&
                    records.confidence.size() == tokens && records.id_begin.size() == tokens + 1 &&
                    records.id_begin.front() == 0 && std::is_sorted(records.id_begin.begin(), records.id_begin.end()) &&
                    records.id_begin.back() == static_cast<std::int64_t>(records.ids.size()) &&
                    (records.log_prob.empty() || records.log_prob.size() == records.ids.size()),
                "sample {}: the arrays of its {} records do not fit together", records.sample_id, tokens);
  const auto problem = problem_of(records, std::int64_t{1} << 31);
  REPRISE_CHECK(!problem, "sample {}: {}: {}", records.sample_id, problem->dataset, problem->what);
  const bool has_log_prob = !records.log_prob.empty(), others_have = !log_prob_.empty();
  REPRISE_CHECK(records.ids.empty() || ids_ == 0 || has_log_prob == others_have,
                "sample {}: log-probabilities of some samples only", records.sample_id);
  add(records);
}

void ReplayShard::add(const SampleRecords& records) {
  sample_id_.push_back(records.sample_id);
  sample_hash_.push_back(records.sample_hash);
  extend(position_, records.position);
  extend(gold_, records.gold);
  extend(flags_, records.flags);
  extend(mass_, records.mass);
  extend(confidence_, records.confidence);
  for (std::size_t t = 0; t < records.position.size(); ++t) {
    const auto begin = static_cast<std::size_t>(records.id_begin[t]);
    const auto end = static_cast<std::size_t>(records.id_begin[t + 1]);
    set_size_.push_back(static_cast<std::uint32_t>(end - begin));
    std::uint32_t previous = 0;
    for (std::size_t i = begin; i < end; ++i) {
      append_varint(set_bytes_, records.ids[i] - previous);
      previous = records.ids[i];
    }
  }
  for (const float value : records.log_prob) log_prob_.push_back(float_to_half(value));
  ids_ += static_cast<std::int64_t>(records.ids.size());
  token_end_.push_back(position_.size());
  byte_end_.push_back(set_bytes_.size());
  id_end_.push_back(static_cast<std::uint64_t>(ids_));
}

void ReplayShard::clear() {
  *this = ReplayShard();
}

SampleRecords ReplayShard::sample(std::int64_t index) const {
  const auto s = static_cast<std::size_t>(index);
  REPRISE_CHECK(s < sample_id_.size(), "sample {} of {}", index, sample_id_.size());
  const auto begin_of = [s](const std::vector<std::uint64_t>& ends) {
    return s == 0 ? std::ptrdiff_t{0} : static_cast<std::ptrdiff_t>(ends[s - 1]);
  };
  const std::ptrdiff_t first = begin_of(token_end_), last = static_cast<std::ptrdiff_t>(token_end_[s]);
  const auto cut = [first, last](auto& to, const auto& from) { to.assign(from.begin() + first, from.begin() + last); };
  SampleRecords records;
  records.sample_id = sample_id_[s];
  records.sample_hash = sample_hash_[s];
  cut(records.position, position_);
  cut(records.gold, gold_);
  cut(records.flags, flags_);
  cut(records.mass, mass_);
  cut(records.confidence, confidence_);

  const auto first_id = static_cast<std::uint64_t>(begin_of(id_end_));
  records.ids.resize(id_end_[s] - first_id);
  records.id_begin.reserve(static_cast<std::size_t>(last - first + 1));
  const std::uint8_t* bytes = set_bytes_.data() + begin_of(byte_end_);
  std::uint32_t* out = records.ids.data();
  for (std::ptrdiff_t t = first; t < last; ++t) {
    std::uint32_t id = 0;
    for (std::uint32_t i = 0; i < set_size_[static_cast<std::size_t>(t)]; ++i) *out++ = id += take_varint(bytes);
    records.id_begin.push_back(out - records.ids.data());
  }
  if (!log_prob_.empty()) {
    records.log_prob.reserve(records.ids.size());
    for (std::uint64_t i = first_id; i < id_end_[s]; ++i) records.log_prob.push_back(half_to_float(log_prob_[i]));
  }
  return records;
}

std::int64_t ReplayShard::memory_bytes() const {
  const std::size_t bytes = sample_id_.size() * 5 * sizeof(std::uint64_t) + position_.size() * (5 * 4 + 1) +
                            set_bytes_.size() + log_prob_.size() * 2;
  return static_cast<std::int64_t>(bytes);
}

// ---- HDF5
// -------------------------------------------------------------------------------------------------------------

std::string ReplayShard::to_hdf5() const {
  std::vector<std::uint64_t> token_ptr{0}, id_ptr{0};
  extend(token_ptr, token_end_);
  id_ptr.reserve(set_size_.size() + 1);
  for (const std::uint32_t size : set_size_) id_ptr.push_back(id_ptr.back() + size);
  std::vector<std::uint32_t> gap(static_cast<std::size_t>(ids_));
  const std::uint8_t* bytes = set_bytes_.data();
  for (std::uint32_t& value : gap) value = take_varint(bytes);

  Hdf5Image image;
  image.write_attribute("format", kFormat);
  image.write_attribute("version", kVersion);
  const auto write = [&image](const char* name, const auto& values) { image.write(name, std::span(values)); };
  write("sample_id", sample_id_);
  write("sample_hash", sample_hash_);
  write("token_ptr", token_ptr);
  write("position", position_);
  write("gold", gold_);
  write("flags", flags_);
  write("mass", mass_);
  write("confidence", confidence_);
  write("id_ptr", id_ptr);
  write("gap", gap);
  if (!log_prob_.empty()) write("log_prob", log_prob_);
  return image.finish();
}

namespace {

/// What the elements of a dataset belong to.
enum class Per : std::uint8_t { kSample, kToken, kId };

/// The datasets of a shard file, as they are read one after the other: those that say where samples and tokens lie come
/// first, so that damage further on can be given a sample.
class ShardFile {
 public:
  explicit ShardFile(const std::filesystem::path& path) : file_(path) {
    require(file_.attribute("format") == kFormat, ErrorKind::kData, "{}: not a shard of a replay store", path.string());
    const std::string version = file_.attribute("version");
    require(version.substr(0, version.find('.')) == "1", ErrorKind::kData,
            "{}: format version \"{}\"; this program reads version 1", path.string(), version);
    read("sample_id", sample_id, file_.size<std::uint64_t>("sample_id"), Per::kSample);
  }

  void read_everything() {
    const auto samples = static_cast<std::int64_t>(sample_id.size());
    read("sample_hash", sample_hash, samples, Per::kSample);
    read("token_ptr", token_ptr, samples + 1, Per::kSample);
    const std::int64_t tokens = file_.size<std::uint32_t>("position");
    check_pointers("token_ptr", token_ptr, tokens);
    read("id_ptr", id_ptr, tokens + 1, Per::kToken);
    const std::int64_t ids = file_.size<std::uint32_t>("gap");
    check_pointers("id_ptr", id_ptr, ids);
    read("position", position, tokens, Per::kToken);
    read("gold", gold, tokens, Per::kToken);
    read("flags", flags, tokens, Per::kToken);
    read("mass", mass, tokens, Per::kToken);
    read("confidence", confidence, tokens, Per::kToken);
    read("gap", gap, ids, Per::kId);
    if (file_.contains("log_prob")) read("log_prob", log_prob, ids, Per::kId);
  }

  /// Sample s with its ids added up. Differences that do not rise, or rise too far, stay visible in the ids.
  void fill(std::size_t s, SampleRecords& records) const {
    const auto begin = static_cast<std::ptrdiff_t>(token_ptr[s]), end = static_cast<std::ptrdiff_t>(token_ptr[s + 1]);
    const auto cut = [begin, end](auto& to, const auto& from) { to.assign(from.begin() + begin, from.begin() + end); };
    records.sample_id = sample_id[s];
    records.sample_hash = sample_hash[s];
    cut(records.position, position);
    cut(records.gold, gold);
    cut(records.flags, flags);
    cut(records.mass, mass);
    cut(records.confidence, confidence);
    records.id_begin.assign(1, 0);
    records.ids.clear();
    records.log_prob.clear();
    for (std::ptrdiff_t t = begin; t < end; ++t) {
      const std::uint64_t first = id_ptr[static_cast<std::size_t>(t)], last = id_ptr[static_cast<std::size_t>(t) + 1];
      std::uint64_t id = 0;
      for (std::uint64_t i = first; i < last; ++i) {
        id = std::min(id + gap[i], std::uint64_t{0xffffffff});
        records.ids.push_back(static_cast<std::uint32_t>(id));
        if (!log_prob.empty()) records.log_prob.push_back(half_to_float(log_prob[i]));
      }
      records.id_begin.push_back(static_cast<std::int64_t>(records.ids.size()));
    }
  }

  [[noreturn]] void refuse(const char* dataset, std::uint64_t id, const std::string& what) const {
    fail(ErrorKind::kData, "{}: dataset {}, sample {}: {}", file_.path().string(), dataset, id, what);
  }

  std::vector<std::uint64_t> sample_id, sample_hash, token_ptr, id_ptr;
  std::vector<std::uint32_t> position, gold, gap;
  std::vector<std::uint8_t> flags;
  std::vector<float> mass, confidence;
  std::vector<std::uint16_t> log_prob;

 private:
  template <class T>
  void read(const char* name, std::vector<T>& values, std::int64_t size, Per per) {
    const std::int64_t found = file_.size<T>(name);
    require(found == size, ErrorKind::kData, "{}: dataset {} has {} elements, {} expected", file_.path().string(), name,
            found, size);
    values.resize(static_cast<std::size_t>(size));
    const std::int64_t sound = file_.read<T>(name, values);
    if (sound == size) return;
    values.clear();
    fail(ErrorKind::kData, "{}: dataset {} is damaged at element {} or soon after, {}", file_.path().string(), name,
         sound, name_of_sample(static_cast<std::uint64_t>(sound), per));
  }

  /// The sample of an element, as far as is known yet.
  [[nodiscard]] std::string name_of_sample(std::uint64_t element, Per per) const {
    if (per == Per::kId) element = index_below(id_ptr, element);
    if (per != Per::kSample) element = index_below(token_ptr, element);
    if (element >= sample_id.size()) return fmt::format("sample number {} of the file", element);
    return fmt::format("sample {}", sample_id[element]);
  }

  /// The part that holds `element`, where `pointers` are the bounds of parts.
  static std::uint64_t index_below(const std::vector<std::uint64_t>& pointers, std::uint64_t element) {
    const auto above = std::upper_bound(pointers.begin(), pointers.end(), element);
    return static_cast<std::uint64_t>(std::max<std::ptrdiff_t>(above - pointers.begin(), 1) - 1);
  }

  void check_pointers(const char* name, const std::vector<std::uint64_t>& pointers, std::int64_t end) const {
    const auto falls = std::adjacent_find(pointers.begin(), pointers.end(), std::greater<>());
    const bool sound =
        pointers.front() == 0 && pointers.back() == static_cast<std::uint64_t>(end) && falls == pointers.end();
    require(
        sound, ErrorKind::kData, "{}: dataset {} must rise from 0 to {}; it begins with {}, ends with {}{}",
        file_.path().string(), name, end, pointers.front(), pointers.back(),
        falls == pointers.end() ? std::string() : fmt::format(" and falls at element {}", falls - pointers.begin()));
  }

  Hdf5File file_;
};

}  // namespace

ReplayShard ReplayShard::from_hdf5(const std::filesystem::path& path, std::int64_t vocab_size) {
  ShardFile file(path);
  file.read_everything();
  ReplayShard shard;
  SampleRecords records;
  for (std::size_t s = 0; s < file.sample_id.size(); ++s) {
    file.fill(s, records);
    if (const auto problem = problem_of(records, vocab_size)) {
      file.refuse(problem->dataset, records.sample_id, problem->what);
    }
    shard.add(records);
  }
  return shard;
}

std::vector<std::uint64_t> read_sample_ids(const std::filesystem::path& path) {
  return ShardFile(path).sample_id;
}

}  // namespace reprise
