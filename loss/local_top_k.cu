// What a row of n = 128,256 logits costs for k = 200. The scan reads n float32 (513 KB) and writes a key for every 64
// of them (8 KB) and 16 bytes for every 4,096. The selection reads the keys (8 KB) and the 200 to 225 blocks of 64 that
// reach the bound (58 KB), and writes k candidates (1.6 KB). Together that is 1.15 times the logits. The scan issues 23
// instructions for a logit, 15 of them for its exponential: two thirds of what an H100 issues while it reads that fast.

#include <algorithm>
#include <limits>

#include "core/cuda/launch.hpp"
#include "loss/local_top_k.cuh"

namespace reprise {
namespace {

// ---- first kernel: every logit once ---------------------------------------------------------------------------------

constexpr int kScanThreads = 256;
constexpr int kLaneWords = 4;                       // of a thread, under way at once
constexpr int kStepWords = kWarpSize * kLaneWords;  // of a warp
constexpr int kStretchWords = 8 * kStepWords;       // of a warp in all: 4,096 logits

/// Which words of a warp's step a lane reads: all of them lie in one block, or the lane has whole blocks to itself.
/// Then a block's maximum takes two exchanges at most, and the lanes of a block read 64 bytes in one piece.
struct LaneWords {
  int begin, lanes;  // of the lane's words, and of a block

  __device__ explicit LaneWords(int block_bits) : lanes(1 << max(block_bits - 2, 0)) {
    begin = lane_index() / lanes * lanes * kLaneWords + lane_index() % lanes;
  }
  __device__ int operator[](int j) const { return begin + j * lanes; }
};

/// Writes the keys of the blocks of a warp's step. max[j] is over word words[j].
__device__ void store_keys(const float (&max)[kLaneWords], const LaneWords& words, int first, int end, int block_bits,
                           VectorView<std::uint32_t> keys) {
  float both[2] = {fmaxf(max[0], max[1]), fmaxf(max[2], max[3])};
  if (block_bits >= 2) {
    float all = fmaxf(both[0], both[1]);
    for (int distance = 1; distance < words.lanes; distance *= 2) {
      all = fmaxf(all, __shfl_xor_sync(kAllLanes, all, distance));
    }
    const int word = first + words[0];
    if (lane_index() % words.lanes == 0 && word < end) keys[word >> block_bits] = rank_key(all);
  } else if (block_bits == 1) {
    for (int j = 0; j < kLaneWords; j += 2) {
      if (first + words[j] < end) keys[(first + words[j]) >> 1] = rank_key(both[j / 2]);
    }
  } else {
    for (int j = 0; j < kLaneWords; ++j) {
      if (first + words[j] < end) keys[first + words[j]] = rank_key(max[j]);
    }
  }
}

/// One warp per stretch of a row: a key for the maximum of each block of 2^block_bits words (1 to 16; negative: none
/// are wanted), and the statistics of the stretch.
template <bool kTransforms>
__global__ void __launch_bounds__(kScanThreads)
    scan_logits_kernel(MatrixView<const float> logits, LogitRule rule, int block_bits,
                       MatrixView<std::uint32_t> block_keys, MatrixView<ShardStatistics> parts) {
  const auto unit = static_cast<std::uint32_t>(global_thread_index() / kWarpSize);
  const auto stretches = static_cast<std::uint32_t>(parts.cols), token = unit / stretches;
  if (token >= logits.rows) return;
  const LogitRow row(logits, token);
  const int stretch = static_cast<int>(unit % stretches), words = row.words();
  const int end = min(words, (stretch + 1) * kStretchWords);
  const LaneWords lane_words(block_bits);
  ExpSum sum;
  float zero = 0.0f;  // x * 0 adds up to NaN if some x is not finite
  for (int first = stretch * kStretchWords; first < end; first += kStepWords) {
    Pack<float, kWordLogits> x[kLaneWords];
    if (!kTransforms && row.holds(first, kStepWords)) {
      for (int j = 0; j < kLaneWords; ++j) x[j] = load_pack<kWordLogits>(row.logits, row.index(first + lane_words[j]));
    } else {
      for (int j = 0; j < kLaneWords; ++j) x[j] = load_word<kTransforms>(row, first + lane_words[j], rule);
    }
    float max[kLaneWords];
    for (int j = 0; j < kLaneWords; ++j) {
      for (int e = 0; e < kWordLogits; ++e) zero = __fmaf_rn(x[j][e], 0.0f, zero);
      max[j] = fmaxf(fmaxf(x[j][0], x[j][1]), fmaxf(x[j][2], x[j][3]));
    }
    if (block_bits >= 0) store_keys(max, lane_words, first, words, block_bits, block_keys.row(token));
    sum.raise(warp_max(fmaxf(fmaxf(max[0], max[1]), fmaxf(max[2], max[3]))));
    for (int j = 0; j < kLaneWords; ++j) {
      for (int e = 0; e < kWordLogits; ++e) sum.add(x[j][e]);
    }
  }
  const bool is_finite = __all_sync(kAllLanes, zero == 0.0f) != 0;
  const double total = warp_sum(sum.sum);
  if (lane_index() == 0) {
    parts(token, stretch) = {total, is_finite ? sum.max : std::numeric_limits<float>::quiet_NaN(), 0.0f};
  }
}

// ---- second kernel: the candidates ----------------------------------------------------------------------------------

constexpr int kSelectThreads = 128;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kSelectLoads = 4;
constexpr int kRoundLogits = kSelectThreads * kWordLogits;

/// Adds up integers of the block's threads, one barrier a call.
class Tally {
 public:
  static constexpr int kScratch = 2 * kSelectWarps;  // two halves, used in turn, so that one barrier is enough

  __device__ explicit Tally(int* scratch) : scratch_(scratch) {}

  /// The sum over the threads before this one; *total is over all.
  __device__ int before(int count, int* total) {
    int sum = count;
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const int lower = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(distance));
      if (lane_index() >= distance) sum += lower;
    }
    const int* const warps = share(sum, kWarpSize - 1);
    int below = 0;
    *total = 0;
    for (int w = 0; w < kSelectWarps; ++w) {
      if (w < warp_index()) below += warps[w];
      *total += warps[w];
    }
    return below + sum - count;
  }
  __device__ int sum(int count) {
    const int* const warps = share(__reduce_add_sync(kAllLanes, count), 0);
    int total = 0;
    for (int w = 0; w < kSelectWarps; ++w) total += warps[w];
    return total;
  }
  __device__ std::uint32_t largest(std::uint32_t value) {
    const int* const warps = share(static_cast<int>(__reduce_max_sync(kAllLanes, value)), 0);
    std::uint32_t result = 0;
    for (int w = 0; w < kSelectWarps; ++w) result = max(result, static_cast<std::uint32_t>(warps[w]));
    return result;
  }

 private:
  /// What lane `lane` of each warp brings.
  __device__ const int* share(int value, int lane) {
    int* const warps = scratch_ + half_ * kSelectWarps;
    half_ ^= 1;
    if (lane_index() == lane) warps[warp_index()] = value;
    __syncthreads();
    return warps;
  }

  int* scratch_;
  int half_ = 0;
};

/// A key that at least k of the keys do not exceed, and not many more, unless they are equal. `least`: the least key.
__device__ std::uint32_t find_bound(VectorView<const std::uint32_t> keys, std::uint32_t least, int k, Tally& tally) {
  std::uint32_t reached = 0;
  for (std::int64_t i = threadIdx.x; i < keys.size; i += kSelectThreads) reached = max(reached, keys[i]);
  reached = tally.largest(reached);
  std::uint32_t missed = least - 1;  // fewer than k keys are up to it
  for (int count = static_cast<int>(keys.size); reached - missed > 1 && count > k + k / 8;) {
    const std::uint32_t middle = missed + (reached - missed) / 2;
    int below = 0;
    for (std::int64_t i = threadIdx.x; i < keys.size; i += kSelectThreads) below += keys[i] <= middle ? 1 : 0;
    below = tally.sum(below);
    if (below >= k) {
      reached = middle;
      count = below;
    } else {
      missed = middle;
    }
  }
  return reached;
}

/// The indices of keys up to `bound`, in order. Returns how many there are, which may be more than `capacity`.
__device__ int list_blocks(VectorView<const std::uint32_t> keys, std::uint32_t bound, int* list, int capacity,
                           Tally& tally) {
  const int size = static_cast<int>(keys.size), share = (size + kSelectThreads - 1) / kSelectThreads;
  const int begin = min(size, static_cast<int>(threadIdx.x) * share), end = min(size, begin + share);
  int count = 0, total;
  for (int i = begin; i < end; ++i) count += keys[i] <= bound ? 1 : 0;
  int at = tally.before(count, &total);
  for (int i = begin; i < end; ++i) {
    if (keys[i] > bound) continue;
    if (at < capacity) list[at] = i;
    ++at;
  }
  __syncthreads();
  return total;
}

/// The at-th word of the listed blocks.
__device__ int word_of(const int* list, int at, int block_bits) {
  const int block = at >> block_bits;
  return (list[block] << block_bits) + at - (block << block_bits);
}

/// Sorts in shared memory, in place; there must be room for the next power of two.
__device__ void sort_candidates(Candidate* candidates, int count) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kSelectThreads) candidates[i] = ~Candidate{0};
  bool is_wide = true;  // the last stage exchanged between warps
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      // The pairs of a warp lie within 64 neighbours while they are at most 32 apart.
      const bool was_wide = is_wide;
      is_wide = distance > kWarpSize;
      if (is_wide || was_wide) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      for (int pair = threadIdx.x; pair < size / 2; pair += kSelectThreads) {
        const int low = (pair & ~(distance - 1)) * 2 + (pair & (distance - 1));
        const Candidate a = candidates[low], b = candidates[low + distance];
        if ((a > b) == ((low & run) == 0)) {
          candidates[low] = b;
          candidates[low + distance] = a;
        }
      }
    }
  }
  __syncthreads();
}

/// Where a row's first k candidates come together, in shared memory: candidates beyond `limit` cannot be among them.
struct Survivors {
  Candidate* candidates;
  int capacity;  // a power of two, at least k + kRoundLogits
  int count = 0;
  Candidate limit;
  float bound;  // value_of(limit)

  __device__ Survivors(Candidate* memory, int room, Candidate first_limit)
      : candidates(memory), capacity(room), limit(first_limit), bound(value_of(first_limit)) {}

  /// Bit e is set where the logit `index` + e survives.
  __device__ unsigned test(const LogitRow& row, const Pack<float, kWordLogits>& x, int index,
                           std::uint32_t first_id) const {
    unsigned mask = 0;
    for (int e = 0; e < kWordLogits; ++e) {
      const int i = index + e;
      const bool may = x[e] >= bound && i >= 0 && i < row.size;
      if (may && make_candidate(x[e], first_id + static_cast<std::uint32_t>(i)) <= limit) mask |= 1U << e;
    }
    return mask;
  }

  /// Takes the survivors among a word of each thread, in the order of the threads; of what does not fit, the first k.
  __device__ void take(const LogitRow& row, const Pack<float, kWordLogits>& x, int index, std::uint32_t first_id, int k,
                       Tally& tally) {
    unsigned mask = test(row, x, index, first_id);
    int total, at = tally.before(__popc(mask), &total);
    if (count + total > capacity) {
      sort_candidates(candidates, count);
      count = k;
      limit = candidates[k - 1];
      bound = value_of(limit);
      mask = test(row, x, index, first_id);
      at = tally.before(__popc(mask), &total);
    }
    for (int e = 0; e < kWordLogits; ++e) {
      if ((mask >> e & 1U) == 0) continue;
      candidates[count + at++] = make_candidate(x[e], first_id + static_cast<std::uint32_t>(index + e));
    }
    count += total;
  }
};

struct Selection {
  std::uint32_t first_id;
  int block_bits;     // the keys are of blocks of 2^block_bits words; negative: there are none
  int capacity;       // of Survivors
  int list_capacity;  // blocks
};

/// One block per row.
template <bool kTransforms>
__global__ void __launch_bounds__(kSelectThreads, 8)
    select_candidates_kernel(MatrixView<const float> logits, LogitRule rule, Selection selection,
                             MatrixView<const std::uint32_t> block_keys, MatrixView<const ShardStatistics> parts,
                             VectorView<const std::int32_t> gold, VectorView<ShardStatistics> statistics,
                             MatrixView<Candidate> candidates) {
  SharedMemory shared;
  Tally tally(shared.take<int>(Tally::kScratch));
  float* const row_max = shared.take<float>(1);
  int* const list = shared.take<int>(selection.list_capacity);
  Candidate* const memory = shared.take<Candidate>(selection.capacity);
  const std::int64_t token = blockIdx.x;
  const LogitRow row(logits, token);
  const int k = static_cast<int>(candidates.cols);

  if (warp_index() == 0) {
    ShardStatistics all = add_up(parts.row(token));
    if (row.size > 0 && !(fabsf(all.max) <= kMaxLogit)) all = {0.0, std::numeric_limits<float>::quiet_NaN(), 0.0f};
    const std::int64_t local = gold[token] - static_cast<std::int64_t>(selection.first_id);
    if (local >= 0 && local < row.size) {
      all.gold_logit = kTransforms ? logit_of(row.logits[local], rule) : row.logits[local];
    }
    if (lane_index() == 0) {
      *row_max = all.max;
      statistics[token] = all;
    }
  }
  __syncthreads();
  const float max = *row_max;
  if (k == 0) return;
  if (max != max) {
    for (int i = threadIdx.x; i < k; i += kSelectThreads) candidates(token, i) = 0;
    return;
  }

  Candidate limit = make_candidate(kLowest, ~0U);
  int listed = selection.list_capacity + 1;  // too many to list: the whole row is read
  if (selection.block_bits >= 0) {
    const int blocks = (row.words() + (1 << selection.block_bits) - 1) >> selection.block_bits;
    const auto keys = block_keys.row(token).slice(0, blocks);
    const std::uint32_t bound = find_bound(keys, rank_key(max), k, tally);
    limit = static_cast<Candidate>(bound) << 32 | ~0U;
    listed = list_blocks(keys, bound, list, selection.list_capacity, tally);
  }
  const bool is_whole = listed > selection.list_capacity;
  const int words = is_whole ? row.words() : listed << selection.block_bits;

  Survivors survivors(memory, selection.capacity, limit);
  for (int first = 0; first < words; first += kSelectThreads * kSelectLoads) {
    Pack<float, kWordLogits> x[kSelectLoads];
    int index[kSelectLoads];
    for (int j = 0; j < kSelectLoads; ++j) {
      const int at = first + j * kSelectThreads + static_cast<int>(threadIdx.x);
      int word = row.words();  // beyond the row
      if (at < words) word = is_whole ? at : word_of(list, at, selection.block_bits);
      index[j] = row.index(word);
      x[j] = load_word<kTransforms>(row, word, rule);
    }
#pragma unroll  // so that the words stay in registers
    for (int j = 0; j < kSelectLoads; ++j) survivors.take(row, x[j], index[j], selection.first_id, k, tally);
  }
  device_check(survivors.count >= k, "fewer candidates reach the bound than are wanted");
  sort_candidates(memory, survivors.count);
  for (int i = threadIdx.x; i < k; i += kSelectThreads) candidates(token, i) = memory[i];
}

/// The largest blocks of at most 64 logits that leave 2 k of them are of 2^n words; -1 if they are less than a word.
int bits_of_block(std::int64_t size, std::int64_t k) {
  int bits = 4;
  while (bits >= 0 && size / (kWordLogits << bits) < 2 * k) --bits;
  return bits;
}

template <bool kTransforms>
void run(const CudaStream& stream, Arena& arena, MatrixView<const float> logits, const LogitRule& rule,
         std::int64_t first_id, VectorView<const std::int32_t> gold, VectorView<ShardStatistics> statistics,
         MatrixView<Candidate> candidates) {
  const std::int64_t k = candidates.cols;
  const std::int64_t most_words = logits.cols == 0 ? 0 : (logits.cols + 2 * (kWordLogits - 1)) / kWordLogits;
  Selection selection{static_cast<std::uint32_t>(first_id), bits_of_block(logits.cols, k), 2048, 0};
  while (selection.capacity < 2 * k + kRoundLogits) selection.capacity *= 2;
  std::int64_t most_blocks = 0;
  if (selection.block_bits >= 0) {
    most_blocks = (most_words >> selection.block_bits) + 1;
    selection.list_capacity = static_cast<int>(2 * k + kWarpSize);
  }
  const auto parts =
      arena.matrix<ShardStatistics>(logits.rows, (most_words + kStretchWords - 1) / kStretchWords, "Top-K parts");
  const auto block_keys = arena.matrix<std::uint32_t>(logits.rows, most_blocks, "Top-K block maxima");
  launch(stream, {"scan_logits", blocks_for(parts.size() * kWarpSize, kScanThreads), kScanThreads},
         scan_logits_kernel<kTransforms>, logits, rule, selection.block_bits, block_keys, parts);
  const std::size_t bytes = shared_bytes<int>(Tally::kScratch) + shared_bytes<float>(1) +
                            shared_bytes<int>(selection.list_capacity) + shared_bytes<Candidate>(selection.capacity);
  launch(stream, {"select_candidates", blocks_for(logits.rows, 1), kSelectThreads, bytes},
         select_candidates_kernel<kTransforms>, logits, rule, selection, block_keys, parts, gold, statistics,
         candidates);
}

}  // namespace

void local_top_k(const CudaStream& stream, Arena& arena, MatrixView<float> logits, const LogitRule& rule,
                 std::int64_t first_id, std::int64_t k, VectorView<const std::int32_t> gold,
                 VectorView<ShardStatistics> statistics, MatrixView<Candidate> candidates) {
  REPRISE_CUDA_CHECK(k >= 1 && gold.size == logits.rows && statistics.size == logits.rows &&
                         candidates.rows == logits.rows && candidates.cols == std::min(k, logits.cols),
                     "top ", k, " of [", logits.rows, ", ", logits.cols, "] into [", candidates.rows, ", ",
                     candidates.cols, "]");
  constexpr std::int64_t kMostLogits = std::int64_t{1} << 30;  // of a row: words and indices are 32-bit
  REPRISE_CUDA_CHECK(candidates.cols <= kMostCudaCandidates && logits.cols <= kMostLogits, "top ", k, " of ",
                     logits.cols, " logits");
  const Arena::Scope scope(arena);
  const bool transforms = rule.scale != 1.0f || rule.softcap != 0.0f;
  const auto run_on = transforms ? run<true> : run<false>;
  run_on(stream, arena, logits, rule, first_id, gold, statistics, candidates);
}

}  // namespace reprise
