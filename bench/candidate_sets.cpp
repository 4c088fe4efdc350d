#include "bench/candidate_sets.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/gemm.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kDocumentTokens = 512;
constexpr std::int64_t kChunkTokens = 64;

std::vector<float> normals(const CpuStream& stream, std::uint64_t seed, std::int64_t size, double spread) {
  std::vector<float> values(static_cast<std::size_t>(size));
  stream.parallel_for(size, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      values[static_cast<std::size_t>(i)] =
          static_cast<float>(spread * random_normal(seed, static_cast<std::uint64_t>(i)));
    }
  });
  return values;
}

/// [tokens, rank]: half of the variance is the document's, half the token's.
std::vector<float> contexts(const CpuStream& stream, const SetGenerator& generator, std::int64_t tokens) {
  const double spread = generator.context_spread / std::sqrt(2.0 * static_cast<double>(generator.rank));
  const auto own = normals(stream, 1, tokens * generator.rank, spread);
  const auto shared = normals(stream, 2, (tokens / kDocumentTokens + 1) * generator.rank, spread);
  std::vector<float> context(own);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < generator.rank; ++i) {
      context[static_cast<std::size_t>(t * generator.rank + i)] +=
          shared[static_cast<std::size_t>(t / kDocumentTokens * generator.rank + i)];
    }
  }
  return context;
}

/// Adds popularity and noise to one token's logits and returns its Top-K ids by value.
std::vector<std::uint32_t> top_ids(const SetGenerator& generator, std::int64_t token, VectorView<float> logits,
                                   std::int64_t k) {
  for (std::int64_t v = 0; v < logits.size; ++v) {
    const double uniform =
        random_uniform(3, static_cast<std::uint64_t>(token), static_cast<std::uint64_t>(v)) + 0x1p-54;
    logits[v] += static_cast<float>(-generator.slope * std::log(static_cast<double>(v) + 3.7) -
                                    generator.noise * std::log(-std::log(uniform)));
  }
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(logits.size));
  std::iota(ids.begin(), ids.end(), 0u);
  std::partial_sort(ids.begin(), ids.begin() + k, ids.end(),
                    [&](std::uint32_t a, std::uint32_t b) { return logits[a] > logits[b]; });
  ids.resize(static_cast<std::size_t>(k));
  return ids;
}

}  // namespace

SampleRecords make_candidate_sets(const CpuStream& stream, const SetGenerator& generator, std::int64_t tokens,
                                  std::int64_t vocab, std::int64_t k) {
  const auto embeddings = normals(stream, 4, vocab * generator.rank, 1.0);
  const auto context = contexts(stream, generator, tokens);
  const MatrixView<const float> all_contexts(context.data(), tokens, generator.rank);
  const MatrixView<const float> all_embeddings(embeddings.data(), vocab, generator.rank);
  std::vector<float> logits(static_cast<std::size_t>(kChunkTokens * vocab));
  std::vector<std::vector<std::uint32_t>> sets(static_cast<std::size_t>(tokens));
  for (std::int64_t begin = 0; begin < tokens; begin += kChunkTokens) {
    const std::int64_t count = std::min(kChunkTokens, tokens - begin);
    const MatrixView<float> chunk(logits.data(), count, vocab);
    gemm<float, float>(stream, Transpose::kNo, Transpose::kYes, 1.0f, all_contexts.row_range(begin, count),
                       all_embeddings, 0.0f, chunk);
    stream.parallel_for(count, 1, [&](std::int64_t i, std::int64_t) {
      sets[static_cast<std::size_t>(begin + i)] = top_ids(generator, begin + i, chunk.row(i), k);
    });
  }

  SampleRecords records;
  for (std::int64_t t = 0; t < tokens; ++t) {
    auto& ids = sets[static_cast<std::size_t>(t)];
    records.position.push_back(static_cast<std::uint32_t>(t));
    records.gold.push_back(ids.back());
    std::sort(ids.begin(), ids.end());
    records.ids.insert(records.ids.end(), ids.begin(), ids.end());
    records.id_begin.push_back(std::ssize(records.ids));
  }
  return records;
}

HeadBatch::HeadBatch(const SampleRecords& records, std::int64_t tile_tokens) {
  for (std::int64_t t = 0; t < records.size(); ++t) {
    row.push_back(static_cast<std::int32_t>(t));
    gold.push_back(static_cast<std::int32_t>(records.gold[static_cast<std::size_t>(t)]));
    weight.push_back(1.0f);
  }
  tiles.append(records, std::vector<std::uint8_t>(row.size(), 1), tile_tokens);
}

}  // namespace reprise
