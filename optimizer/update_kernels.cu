#include <type_traits>

#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "optimizer/update_kernels.hpp"

// All of these wait for memory. A chunk of 16,384 coordinates is one block, so 1B parameters are 61,036 blocks; each
// thread has one 16-byte load of every stream on its way: on one multiprocessor 48 KB in the sums of MoClip, 24 KB in
// those of AdamW and 64 KB in the update, where an H100 needs 18 KB (3.35 TB/s, 0.7 us).
// Bytes of a coordinate: sums 8 (AdamW 4); update 32 with float32 storage (reads G m v w, writes them), 34 with
// bfloat16. At 0.9 of 3.35 TB/s (H100) 1B float32 parameters take 2.7 + 10.6 = 13.3 ms with MoClip and 1.3 + 10.6
// = 11.9 ms with AdamW and clipping: a ratio of 1.11 where the sums are not hidden, 1.0 where they are. Arithmetic is
// less than a third of that: 61 instructions of a coordinate's update, 3 float64 multiply-adds and 2 conversions of its
// sums.

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;  // float32 in 16 bytes

/// Elements [i, i + kPack) of an array of `size`; those beyond it are zero. kWhole: there are none beyond it.
template <bool kWhole>
__device__ Pack<float, kPack> load_some(const float* array, int i, int size) {
  if constexpr (kWhole) {
    return load_pack<kPack>(array, i);
  } else {
    Pack<float, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack[k] = i + k < size ? array[i + k] : 0.0f;
    return pack;
  }
}

template <bool kWhole, class T>
__device__ void store_some(T* array, int i, int size, const Pack<T, kPack>& pack) {
  if constexpr (kWhole) {
    store_pack(array, i, pack);
  } else {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (i + k < size) array[i + k] = pack[k];
    }
  }
}

/// body(i, whole) for every pack of a chunk that is this thread's; `whole` is a constant, so that all loads of a body
/// are under way before the first is needed.
template <class Body>
__device__ void for_each_pack(int size, const Body& body) {
  for (int i = static_cast<int>(threadIdx.x) * kPack; i < size; i += kThreads * kPack) {
    if (i + kPack <= size) {
      body(i, std::true_type());
    } else {
      body(i, std::false_type());
    }
  }
}

// ---- sums ----------------------------------------------------------------------------------------------------------

constexpr unsigned kExponentBits = 0x7f800000U;

__device__ int is_not_finite(float value) {
  return (__float_as_uint(value) & kExponentBits) == kExponentBits ? 1 : 0;
}

constexpr int kWarps = kThreads / kWarpSize;

/// Over all threads of the block, in every thread; `scratch` holds kWarps sums and is used once. Four values share one
/// barrier, which block_sum four times over would not.
__device__ GroupSums block_total(const GroupSums& own, GroupSums* scratch) {
  const GroupSums of_warp{warp_sum(own.g_dot_m), warp_sum(own.g_dot_g), warp_sum(own.m_dot_m),
                          warp_sum(own.non_finite)};
  if (lane_index() == 0) scratch[warp_index()] = of_warp;
  __syncthreads();
  GroupSums total;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += scratch[w];
  return total;
}

/// One block per chunk.
template <UpdateRule kRule>
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(VectorView<const UpdateChunk> chunks, VectorView<const float> gradients,
                      VectorView<const float> exp_avgs, VectorView<GroupSums> sums) {
  SharedMemory shared;
  GroupSums* const scratch = shared.take<GroupSums>(kWarps);
  const UpdateChunk chunk = chunks[blockIdx.x];
  const int size = chunk.slot < 0 ? 0 : static_cast<int>(chunk.size);
  const float* const gradient = gradients.data + chunk.gradient;
  const float* const exp_avg = exp_avgs.data + chunk.state;
  double gm = 0.0, gg = 0.0, mm = 0.0;
  int non_finite = 0;
  for_each_pack(size, [&](int i, auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    const auto g = load_some<kWhole>(gradient, i, size);
    Pack<float, kPack> m{};
    if constexpr (kRule == UpdateRule::kMoClip) m = load_some<kWhole>(exp_avg, i, size);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const double g64 = g[k], m64 = m[k];
      gg = fma(g64, g64, gg);
      non_finite += is_not_finite(g[k]);
      if constexpr (kRule == UpdateRule::kMoClip) {
        gm = fma(g64, m64, gm);
        mm = fma(m64, m64, mm);
        non_finite += is_not_finite(m[k]);
      }
    }
  });
  GroupSums total = block_total({gm, gg, mm, static_cast<double>(non_finite)}, scratch);
  if (threadIdx.x != 0 || chunk.slot < 0) return;
  if (!chunk.counted) total = {0.0, 0.0, 0.0, total.non_finite};
  sums[chunk.slot] = total;
}

/// One block per group, and a last one for the step's own sums.
__global__ void __launch_bounds__(kThreads)
    sum_groups_kernel(VectorView<const GroupSums> sums, VectorView<const std::int64_t> group_begin, StepSums step,
                      VectorView<const double> losses, VectorView<double> doubles) {
  SharedMemory shared;
  GroupSums* const scratch = shared.take<GroupSums>(kWarps);
  const std::int64_t group = blockIdx.x, groups = group_begin.size - 1;
  GroupSums own;
  if (group < groups) {
#pragma unroll 4
    for (std::int64_t slot = group_begin[group] + threadIdx.x; slot < group_begin[group + 1]; slot += kThreads) {
      own += sums[slot];
    }
  }
  const GroupSums total = block_total(own, scratch);
  if (threadIdx.x != 0) return;
  double* const to = doubles.data + group * kDoublesPerGroup;
  if (group < groups) {
    write_doubles(total, to);
  } else {
    for (const double loss : losses) step.weighted_loss += loss;
    write_doubles(step, to);
  }
}

// ---- the decision --------------------------------------------------------------------------------------------------

/// One block: every rank launches it on the same numbers.
__global__ void __launch_bounds__(kThreads)
    decide_step_kernel(StepRule rule, VectorView<const double> gathered, StepOutcome outcome) {
  SharedMemory shared;
  GroupSums* const scratch = shared.take<GroupSums>(kWarps);
  const std::int64_t groups = outcome.scalars.size, doubles = outcome.totals.size;
  for (std::int64_t i = threadIdx.x; i < doubles; i += kThreads) {
    double total = 0.0;
    for (std::int64_t place = i; place < gathered.size; place += doubles) total += gathered[place];
    outcome.totals[i] = total;
  }
  __syncthreads();
  GroupSums own;
  for (std::int64_t g = threadIdx.x; g < groups; g += kThreads) {
    own += read_group_sums(outcome.totals.data + g * kDoublesPerGroup);
  }
  const GroupSums all = block_total(own, scratch);
  const StepDecision decision =
      decide(rule.clip_norm, all, read_step_sums(outcome.totals.data + groups * kDoublesPerGroup));
  for (std::int64_t g = threadIdx.x; g < groups; g += kThreads) {
    const Turn turn = turn_of(rule, decision, read_group_sums(outcome.totals.data + g * kDoublesPerGroup));
    outcome.turns[g] = turn;
    outcome.scalars[g] = make_update_scalars(rule.terms, decision.scale * turn.gradient, turn.momentum);
  }
  if (threadIdx.x == 0) outcome.decision[0] = decision;
}

// ---- the update ----------------------------------------------------------------------------------------------------

// The exponent's bits alone decide, which keeps NaN and Inf.
__device__ float without_subnormals(float x) {
  return (__float_as_uint(x) & kExponentBits) != 0 ? x : 0.0f;
}

/// What is taken off the weight, decay apart: the operations of update_simd.cpp in their order. Products that are added
/// stand in multiply-adds or in __fmul_rn, so that the compiler has nothing left to contract.
template <UpdateRule kRule>
__device__ float step_of(const UpdateScalars& s, float m, float v) {
  if constexpr (kRule == UpdateRule::kAdamW) {
    return s.lr_correction * m / (sqrtf(v * s.v_correction) + s.eps);
  } else {
    const float across2 = __fmul_rn(m * m, s.tan2);
    const float along2 = 0x1p-126f > v ? 0x1p-126f : v;  // against 0/0; a NaN passes
    const float sin2 = (across2 < along2 ? across2 : along2) / (across2 + along2);
    const float sine = sqrtf(sin2);
    float p = 0x1.9d55eap-4f;
    p = fmaf(p, sin2, -0x1.c04accp-5f);
    p = fmaf(p, sin2, 0x1.efdf32p-5f);
    p = fmaf(p, sin2, 0x1.3f902ep-5f);
    p = fmaf(p, sin2, 0x1.35210ap-4f);
    p = fmaf(p, sin2, 0x1.554e8ep-3f);
    const float arc = fmaf(sine * sin2, p, sine);
    return s.lr * copysignf(across2 > along2 ? 0x1.921fb6p+0f - arc : arc, m);
  }
}

struct Coordinate {
  float exp_avg, exp_avg_sq, weight;
};

template <UpdateRule kRule>
__device__ Coordinate move(const UpdateScalars& s, float gradient, const Coordinate& old) {
  const float root_change = fmaf(s.root_from_g, gradient, s.root_from_m * old.exp_avg);
  const float m = without_subnormals(fmaf(s.m_from_g, gradient, s.m_from_m * old.exp_avg));
  const float v = without_subnormals(fmaf(root_change, root_change, s.beta2 * old.exp_avg_sq));
  return {m, v, old.weight - fmaf(s.decay, old.weight, step_of<kRule>(s, m, v))};
}

constexpr int kUpdateBlocks = 4;  // on one multiprocessor: 64 KB of loads under way

/// One block per chunk.
template <UpdateRule kRule, bool kHasParameter>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks)
    update_chunks_kernel(VectorView<const UpdateChunk> chunks, UpdateState state,
                         VectorView<const UpdateScalars> scalars, VectorView<const StepDecision> decision) {
  const UpdateChunk chunk = chunks[blockIdx.x];
  UpdateScalars s = scalars[chunk.group];
  if (!chunk.decay) s.decay = 0.0f;
  const bool skipped = decision[0].skipped;
  const int size = static_cast<int>(chunk.size);
  float* const gradient = state.gradient.data + chunk.gradient;
  float* const exp_avg = state.exp_avg.data + chunk.state;
  float* const exp_avg_sq = state.exp_avg_sq.data + chunk.state;
  float* const master = state.master.data + chunk.master;
  for_each_pack(size, [&](int i, auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    if (!skipped) {
      const auto g = load_some<kWhole>(gradient, i, size);
      auto m = load_some<kWhole>(exp_avg, i, size), v = load_some<kWhole>(exp_avg_sq, i, size);
      auto w = load_some<kWhole>(master, i, size);
      Pack<BFloat16, kPack> rounded;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const Coordinate now = move<kRule>(s, g[k], {m[k], v[k], w[k]});
        m[k] = now.exp_avg;
        v[k] = now.exp_avg_sq;
        w[k] = now.weight;
        rounded[k] = from_float<BFloat16>(now.weight);
      }
      store_some<kWhole>(exp_avg, i, size, m);
      store_some<kWhole>(exp_avg_sq, i, size, v);
      store_some<kWhole>(master, i, size, w);
      if constexpr (kHasParameter) store_some<kWhole>(state.parameter.data + chunk.parameter, i, size, rounded);
    }
    store_some<kWhole>(gradient, i, size, Pack<float, kPack>{});
  });
}

constexpr std::size_t kScratchBytes = shared_bytes<GroupSums>(kWarps);

}  // namespace

void sum_chunks(const CudaStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                const UpdateState& state, VectorView<GroupSums> sums) {
  const LaunchShape shape{"sum_chunks", blocks_for(chunks.size, 1), kThreads, kScratchBytes};
  const auto kernel =
      rule == UpdateRule::kMoClip ? sum_chunks_kernel<UpdateRule::kMoClip> : sum_chunks_kernel<UpdateRule::kAdamW>;
  launch(stream, shape, kernel, chunks, state.gradient, state.exp_avg, sums);
}

void sum_groups(const CudaStream& stream, VectorView<const GroupSums> sums, VectorView<const std::int64_t> group_begin,
                const StepSums& step, VectorView<const double> losses, VectorView<double> doubles) {
  const std::int64_t groups = group_begin.size - 1;
  REPRISE_CUDA_CHECK(doubles.size == groups * kDoublesPerGroup + kDoublesPerStep, doubles.size, " doubles for ", groups,
                     " groups");
  launch(stream, {"sum_groups", blocks_for(groups + 1, 1), kThreads, kScratchBytes}, sum_groups_kernel, sums,
         group_begin, step, losses, doubles);
}

void decide_step(const CudaStream& stream, const StepRule& rule, VectorView<const double> gathered,
                 const StepOutcome& outcome) {
  const std::int64_t groups = outcome.scalars.size, doubles = outcome.totals.size;
  REPRISE_CUDA_CHECK(doubles == groups * kDoublesPerGroup + kDoublesPerStep && gathered.size % doubles == 0 &&
                         outcome.turns.size == groups && outcome.decision.size == 1,
                     gathered.size, " gathered doubles, ", doubles, " totals, ", outcome.turns.size, " turns and ",
                     outcome.decision.size, " decisions for ", groups, " groups");
  launch(stream, {"decide_step", 1, kThreads, kScratchBytes}, decide_step_kernel, rule, gathered, outcome);
}

void update_chunks(const CudaStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                   const UpdateState& state, VectorView<const UpdateScalars> scalars,
                   VectorView<const StepDecision> decision) {
  const LaunchShape shape{"update_chunks", blocks_for(chunks.size, 1), kThreads};
  const bool is_moclip = rule == UpdateRule::kMoClip, has_parameter = !state.parameter.empty();
  auto* kernel = update_chunks_kernel<UpdateRule::kMoClip, true>;
  if (is_moclip && !has_parameter) kernel = update_chunks_kernel<UpdateRule::kMoClip, false>;
  if (!is_moclip && has_parameter) kernel = update_chunks_kernel<UpdateRule::kAdamW, true>;
  if (!is_moclip && !has_parameter) kernel = update_chunks_kernel<UpdateRule::kAdamW, false>;
  launch(stream, shape, kernel, chunks, state, scalars, decision);
}

}  // namespace reprise
