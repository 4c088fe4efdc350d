#include "launcher/micro_batch.hpp"

#include <algorithm>
#include <limits>

#include "core/error.hpp"

namespace reprise {

bool MicroBatch::append(const Sample& sample, std::int64_t sequence_length) {
  const std::int64_t length = std::min(sample.size(), sequence_length + 1);
  if (length < 2) return false;
  if (std::find(sample.mask.begin() + 1, sample.mask.begin() + length, 1) == sample.mask.begin() + length) return false;

  const std::int64_t first_row = num_tokens();
  REPRISE_CHECK(first_row + length <= std::numeric_limits<std::int32_t>::max(), "{} tokens in one micro-batch",
                first_row + length);
  tokens.insert(tokens.end(), sample.tokens.begin(), sample.tokens.begin() + length - 1);
  document_offsets.push_back(num_tokens());
  for (std::int64_t p = 0; p + 1 < length; ++p) {
    const auto next = static_cast<std::size_t>(p + 1);
    if (sample.mask[next] == 0) continue;
    row.push_back(static_cast<std::int32_t>(first_row + p));
    gold.push_back(sample.tokens[next]);
    weight.push_back(sample.weight.empty() ? 1.0f : sample.weight[next]);
    position.push_back(static_cast<std::uint32_t>(p));
  }
  sample_begin.push_back(num_targets());
  sample_id.push_back(sample.id);
  sample_hash.push_back(sample.hash);
  truncated += sample.size() > length ? 1 : 0;
  return true;
}

std::vector<std::int32_t> sample_owners(const MicroBatch& batch, int tp_size) {
  std::vector<std::int32_t> owners;
  for (const std::uint64_t id : batch.sample_id) {
    owners.push_back(static_cast<std::int32_t>(id % static_cast<std::uint64_t>(tp_size)));
  }
  return owners;
}

}  // namespace reprise
