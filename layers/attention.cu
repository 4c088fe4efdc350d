#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "layers/attention_tiles.cuh"

namespace reprise {
namespace {

using detail::AttentionHeads;
using detail::AttentionTile;
using detail::AttentionTileSizes;

// ---- the work, made on the host ------------------------------------------------------------------------------------

AttentionHeads heads_of(const AttentionShape& shape) {
  REPRISE_CUDA_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0, shape.num_heads,
                     " heads over ", shape.num_kv_heads, " kv heads");
  const std::int64_t group = shape.num_heads / shape.num_kv_heads;
  AttentionHeads heads{};
  heads.num_heads = static_cast<std::int32_t>(shape.num_heads);
  heads.num_kv_heads = static_cast<std::int32_t>(shape.num_kv_heads);
  heads.group = static_cast<std::int32_t>(group);
  heads.head_dim = static_cast<std::int32_t>(shape.head_dim);
  if (group > 1) heads.group_inverse = static_cast<std::uint32_t>(((std::int64_t{1} << 32) + group - 1) / group);
  heads.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  return heads;
}

/// A document with its rows and keys, and nothing of it chosen yet.
AttentionTile document_tile(const AttentionHeads& heads, std::int64_t first_query, std::int64_t queries,
                            std::int64_t first_key, std::int64_t keys) {
  const std::int64_t rows = queries * heads.group;
  REPRISE_CUDA_CHECK(rows * heads.group <= std::numeric_limits<std::int32_t>::max() &&
                         keys <= std::numeric_limits<std::int32_t>::max(),
                     "attention: a document of ", queries, " queries and ", keys, " keys is too long");
  REPRISE_CUDA_CHECK(queries <= keys, "attention: ", queries, " queries of ", keys, " keys");
  return {first_query,
          first_key,
          static_cast<std::int32_t>(rows),
          static_cast<std::int32_t>(keys),
          static_cast<std::int32_t>(keys - queries),
          0};
}

/// Documents cut into tiles of `tile_rows` rows, or `tile_keys` keys, with a measure of their work.
class TileList {
 public:
  void add_rows(AttentionTile document, std::int32_t group, std::int64_t tile_rows) {
    for (std::int64_t begin = 0; begin < document.rows; begin += tile_rows) {
      document.begin = static_cast<std::int32_t>(begin);
      const std::int64_t last = std::min<std::int64_t>(begin + tile_rows, document.rows) - 1;
      tiles_.push_back({document.hidden + last / group + 1, document});
    }
  }
  void add_keys(AttentionTile document, std::int32_t group, std::int64_t tile_keys) {
    for (std::int64_t begin = 0; begin < document.keys; begin += tile_keys) {
      document.begin = static_cast<std::int32_t>(begin);
      const std::int64_t first = std::max<std::int64_t>(0, begin - document.hidden) * group;
      tiles_.push_back({std::max<std::int64_t>(0, document.rows - first), document});
    }
  }

  /// On the device, most work first, so that no long tile starts when all others are done.
  VectorView<const AttentionTile> to_device(Arena& arena) {
    std::stable_sort(tiles_.begin(), tiles_.end(), [](const auto& a, const auto& b) { return a.work > b.work; });
    std::vector<AttentionTile> tiles;
    tiles.reserve(tiles_.size());
    for (const Entry& entry : tiles_) tiles.push_back(entry.tile);
    return arena.copy<AttentionTile>(tiles, "attention tiles");
  }

 private:
  struct Entry {
    std::int64_t work;
    AttentionTile tile;
  };
  std::vector<Entry> tiles_;
};

template <class T>
bool fits_packs(const HeadRows<T>& rows) {
  return rows.stride % detail::kTensorPack == 0 &&
         reinterpret_cast<std::uintptr_t>(rows.data) % (sizeof(T) * detail::kTensorPack) == 0;
}

/// Whether the tensor-core kernels can take these arrays.
template <class T, class... Rows>
bool fits_tensor(std::int64_t head_dim, const Rows&... rows) {
  return std::is_same_v<T, BFloat16> && head_dim % detail::kTensorPack == 0 && head_dim <= detail::kMaxTensorHeadDim &&
         (fits_packs(rows) && ...);
}

AttentionTileSizes tile_sizes(bool fits) {
  return fits ? detail::tensor_tile_sizes() : detail::plain_tile_sizes();
}

template <class T>
void run_forward(const CudaStream& stream, bool fits, const detail::AttentionForward<T>& args) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (fits) return detail::tensor_attention(stream, args);
  }
  detail::plain_attention(stream, args);
}

template <class T>
void run_backward(const CudaStream& stream, bool fits, const detail::AttentionBackward<T>& args) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (fits) return detail::tensor_attention_backward(stream, args);
  }
  detail::plain_attention_backward(stream, args);
}

// ---- delta ---------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256, kLanes = 8, kElements = 8;  // of a dot product: 128 bytes of bfloat16 at a time

template <class T>
__device__ float dot_part(const T* a, const T* b, int begin, int size) {
  float sum = 0.0f;
  if (begin + kElements <= size && reinterpret_cast<std::uintptr_t>(a + begin) % sizeof(Pack<T, kElements>) == 0 &&
      reinterpret_cast<std::uintptr_t>(b + begin) % sizeof(Pack<T, kElements>) == 0) {
    const auto x = load_pack<kElements>(a, begin), y = load_pack<kElements>(b, begin);
    for (int i = 0; i < kElements; ++i) sum += to_float(x[i]) * to_float(y[i]);
  } else {
    for (int i = begin; i < min(begin + kElements, size); ++i) sum += to_float(a[i]) * to_float(b[i]);
  }
  return sum;
}

/// delta [tokens, num_heads] = <d_o, o>, eight lanes to one.
template <class T>
__global__ void __launch_bounds__(kThreads) attention_delta_kernel(HeadRows<const T> output, HeadRows<const T> d_output,
                                                                   int head_dim, MatrixView<float> delta) {
  const std::int64_t wanted = global_thread_index() / kLanes, index = min(wanted, delta.size() - 1);
  const std::int64_t token = index / delta.cols, head = index % delta.cols;
  const T* const o = output.data + token * output.stride + head * head_dim;
  const T* const d_o = d_output.data + token * d_output.stride + head * head_dim;
  const int lane = lane_index() % kLanes;
  float sum = 0.0f;
  for (int begin = lane * kElements; begin < head_dim; begin += kLanes * kElements) {
    sum += dot_part(o, d_o, begin, head_dim);
  }
  for (int distance = 1; distance < kLanes; distance *= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (lane == 0 && wanted == index) delta.data[index] = sum;
}

}  // namespace

template <class T>
void attention(const CudaStream& stream, Arena& arena, const AttentionShape& shape,
               VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
               HeadRows<T> output, MatrixView<float> log_sum_exp) {
  const AttentionHeads heads = heads_of(shape);
  REPRISE_CUDA_CHECK(log_sum_exp.cols == shape.num_heads, "log_sum_exp has ", log_sum_exp.cols, " columns for ",
                     shape.num_heads, " heads");
  const Arena::Scope scope(arena);
  const bool fits = fits_tensor<T>(shape.head_dim, q, k, v, output);
  TileList list;
  for (std::int64_t d = 0; d + 1 < offsets.size; ++d) {
    const std::int64_t begin = offsets[d], tokens = offsets[d + 1] - begin;
    list.add_rows(document_tile(heads, begin, tokens, begin, tokens), heads.group, tile_sizes(fits).forward_rows);
  }
  run_forward<T>(stream, fits, {heads, list.to_device(arena), q, k, v, output, log_sum_exp.data});
}

template <class T>
void attention_backward(const CudaStream& stream, Arena& arena, const AttentionShape& shape,
                        VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k,
                        HeadRows<const T> v, HeadRows<const T> output, MatrixView<const float> log_sum_exp,
                        HeadRows<const T> d_output, HeadRows<T> d_q, HeadRows<T> d_k, HeadRows<T> d_v) {
  const AttentionHeads heads = heads_of(shape);
  const Arena::Scope scope(arena);
  const MatrixView<float> delta = arena.matrix<float>(log_sum_exp.rows, log_sum_exp.cols, "attention delta");
  launch(stream, {"attention_delta", blocks_for(delta.size() * kLanes, kThreads), kThreads}, attention_delta_kernel<T>,
         output, d_output, heads.head_dim, delta);

  const bool fits = fits_tensor<T>(shape.head_dim, q, k, v, d_output, d_q, d_k, d_v);
  const AttentionTileSizes sizes = tile_sizes(fits);
  TileList query_tiles, key_tiles;
  for (std::int64_t d = 0; d + 1 < offsets.size; ++d) {
    const std::int64_t begin = offsets[d], tokens = offsets[d + 1] - begin;
    const AttentionTile document = document_tile(heads, begin, tokens, begin, tokens);
    query_tiles.add_rows(document, heads.group, sizes.backward_rows);
    key_tiles.add_keys(document, heads.group, sizes.backward_keys);
  }
  run_backward<T>(stream, fits,
                  {heads, query_tiles.to_device(arena), key_tiles.to_device(arena), q, k, v, d_output, log_sum_exp.data,
                   delta.data, d_q, d_k, d_v});
}

template <class T>
void cached_attention(const CudaStream& stream, Arena& arena, const AttentionShape& shape,
                      VectorView<const std::int64_t> offsets, VectorView<const std::int64_t> lengths,
                      std::int64_t max_length, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
                      HeadRows<T> output) {
  const AttentionHeads heads = heads_of(shape);
  const Arena::Scope scope(arena);
  const bool fits = fits_tensor<T>(shape.head_dim, q, k, v, output);
  TileList list;
  for (std::int64_t d = 0; d < lengths.size; ++d) {
    list.add_rows(document_tile(heads, offsets[d], offsets[d + 1] - offsets[d], d * max_length, lengths[d]),
                  heads.group, tile_sizes(fits).forward_rows);
  }
  run_forward<T>(stream, fits, {heads, list.to_device(arena), q, k, v, output, nullptr});
}

#define REPRISE_INSTANTIATE(T)                                                                                         \
  template void attention<T>(const CudaStream&, Arena&, const AttentionShape&, VectorView<const std::int64_t>,         \
                             HeadRows<const T>, HeadRows<const T>, HeadRows<const T>, HeadRows<T>, MatrixView<float>); \
  template void attention_backward<T>(const CudaStream&, Arena&, const AttentionShape&,                                \
                                      VectorView<const std::int64_t>, HeadRows<const T>, HeadRows<const T>,            \
                                      HeadRows<const T>, HeadRows<const T>, MatrixView<const float>,                   \
                                      HeadRows<const T>, HeadRows<T>, HeadRows<T>, HeadRows<T>);                       \
  template void cached_attention<T>(const CudaStream&, Arena&, const AttentionShape&, VectorView<const std::int64_t>,  \
                                    VectorView<const std::int64_t>, std::int64_t, HeadRows<const T>,                   \
                                    HeadRows<const T>, HeadRows<const T>, HeadRows<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
