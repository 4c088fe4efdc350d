#include "loss/candidate_tiles.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/error.hpp"
#include "core/math.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

/// Sets of ids as bits, reused from tile to tile: the union of a tile costs one pass over its ids and one over the
/// words, whatever the number of sets, and comes out sorted.
class IdBits {
 public:
  explicit IdBits(std::int64_t ids) : words_(static_cast<std::size_t>(ceil_div(ids, 64))) {}

  void insert(std::span<const std::uint32_t> ids) {
    for (const std::uint32_t id : ids) words_[id >> 6] |= std::uint64_t{1} << (id & 63);
  }
  /// Appends the ids in order and forgets them.
  void drain(std::vector<std::int32_t>& ids) {
    for (std::size_t w = 0; w < words_.size(); ++w) {
      for (std::uint64_t bits = words_[w]; bits != 0; bits &= bits - 1) {
        ids.push_back(static_cast<std::int32_t>(w * 64) + std::countr_zero(bits));
      }
      words_[w] = 0;
    }
  }

 private:
  std::vector<std::uint64_t> words_;
};

std::span<const std::uint32_t> ids_of(const SampleRecords& records, std::int64_t begin, std::int64_t end) {
  const auto first = static_cast<std::size_t>(records.id_begin[static_cast<std::size_t>(begin)]);
  const auto last = static_cast<std::size_t>(records.id_begin[static_cast<std::size_t>(end)]);
  return std::span(records.ids).subspan(first, last - first);
}

}  // namespace

void CandidateTilesBuilder::append(const SampleRecords& records, std::span<const std::uint8_t> keep,
                                   std::int64_t tile_tokens) {
  const std::int64_t tokens = records.size();
  require(tile_tokens >= 1, ErrorKind::kUsage, "replay.tile_tokens = {}: must be at least 1", tile_tokens);
  REPRISE_CHECK(static_cast<std::int64_t>(keep.size()) == tokens, "{} flags for {} records", keep.size(), tokens);
  REPRISE_CHECK(static_cast<std::int64_t>(records.id_begin.size()) == tokens + 1 &&
                    records.id_begin.back() == static_cast<std::int64_t>(records.ids.size()),
                "sample {}: {} offsets for {} records and {} ids", records.sample_id, records.id_begin.size(), tokens,
                records.ids.size());
  if (tokens == 0) return;
  const std::uint32_t max_id = records.ids.empty() ? 0 : *std::max_element(records.ids.begin(), records.ids.end());
  require(max_id <= std::numeric_limits<std::int32_t>::max(), ErrorKind::kData,
          "sample {}: id {} is not below 2^31; is the replay store damaged?", records.sample_id, max_id);

  IdBits united(std::int64_t{max_id} + 1);
  for (std::int64_t begin = 0; begin < tokens;) {
    const std::int64_t end = begin + std::min(tile_tokens, tokens - begin);
    const auto kept = keep.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    const std::int64_t count = std::count_if(kept.begin(), kept.end(), [](std::uint8_t flag) { return flag != 0; });
    if (count > 0) {
      const std::span<const std::uint32_t> listed = ids_of(records, begin, end);
      if (end - begin == 1) {
        for (const std::uint32_t id : listed) ids.push_back(static_cast<std::int32_t>(id));
      } else {
        united.insert(listed);
        united.drain(ids);
      }
      token_begin.push_back(token_begin.back() + count);
      id_begin.push_back(static_cast<std::int64_t>(ids.size()));
    }
    begin = end;
  }
}

void CandidateTilesBuilder::clear() {
  token_begin.assign(1, 0);
  id_begin.assign(1, 0);
  ids.clear();
}

std::vector<std::int32_t> sample_negatives(std::uint64_t seed, std::uint64_t step, std::int64_t count,
                                           std::int64_t vocab_size) {
  // Keeps these draws apart from other uses of the run's seed, such as the order of the samples.
  constexpr std::uint64_t kStream = 0x6e65676174697665;
  REPRISE_CHECK(vocab_size >= 1 && vocab_size <= std::numeric_limits<std::int32_t>::max(), "vocabulary of {}",
                vocab_size);
  require(count >= 0, ErrorKind::kUsage, "replay.negatives = {}: must not be negative", count);
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t bits = random_bits(seed ^ kStream, step, static_cast<std::uint64_t>(i)) >> 32;
    ids.push_back(static_cast<std::int32_t>(bits * static_cast<std::uint64_t>(vocab_size) >> 32));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace reprise
