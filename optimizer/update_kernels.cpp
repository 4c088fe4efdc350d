#include "optimizer/update_kernels.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void sums_of_products(const float* gradient, const float* exp_avg, std::int64_t size,
                                           double* sums))
REPRISE_SIMD_DECLARE(void sum_of_squares(const float* gradient, std::int64_t size, double* sum))
REPRISE_SIMD_DECLARE(void moclip_pass(const UpdateScalars* scalars, float* gradient, float* exp_avg, float* exp_avg_sq,
                                      float* master, std::uint16_t* parameter, std::int64_t size))
REPRISE_SIMD_DECLARE(void adamw_pass(const UpdateScalars* scalars, float* gradient, float* exp_avg, float* exp_avg_sq,
                                     float* master, std::uint16_t* parameter, std::int64_t size))

namespace {

double count_non_finite(VectorView<const float> values) {
  double count = 0.0;
  for (const float value : values) count += std::isfinite(value) ? 0.0 : 1.0;
  return count;
}

GroupSums moclip_sums(VectorView<const float> gradient, VectorView<const float> exp_avg) {
  double sums[3];
  REPRISE_SIMD_CALL(sums_of_products, gradient.data, exp_avg.data, gradient.size, sums);
  GroupSums group{sums[0], sums[1], sums[2], 0.0};
  // A square of a finite float32 cannot leave float64, so a second look is needed only where a sum is not finite.
  if (!std::isfinite(group.g_dot_g) || !std::isfinite(group.m_dot_m)) {
    group.non_finite = count_non_finite(gradient) + count_non_finite(exp_avg);
  }
  return group;
}

GroupSums adamw_sums(VectorView<const float> gradient) {
  GroupSums group;
  REPRISE_SIMD_CALL(sum_of_squares, gradient.data, gradient.size, &group.g_dot_g);
  if (!std::isfinite(group.g_dot_g)) group.non_finite = count_non_finite(gradient);
  return group;
}

void update_chunk(UpdateRule rule, const UpdateChunk& chunk, const UpdateState& state, UpdateScalars scalars) {
  if (!chunk.decay) scalars.decay = 0.0f;
  float* const gradient = state.gradient.data + chunk.gradient;
  float* const exp_avg = state.exp_avg.data + chunk.state;
  float* const exp_avg_sq = state.exp_avg_sq.data + chunk.state;
  float* const master = state.master.data + chunk.master;
  static_assert(sizeof(BFloat16) == sizeof(std::uint16_t));
  std::uint16_t* const parameter = state.parameter.empty() ? nullptr : &(state.parameter.data + chunk.parameter)->bits;
  if (rule == UpdateRule::kMoClip) {
    REPRISE_SIMD_CALL(moclip_pass, &scalars, gradient, exp_avg, exp_avg_sq, master, parameter, chunk.size);
  } else {
    REPRISE_SIMD_CALL(adamw_pass, &scalars, gradient, exp_avg, exp_avg_sq, master, parameter, chunk.size);
  }
}

}  // namespace

StepTerms make_step_terms(const OptimizerOptions& options, std::int64_t t, double lr) {
  const double correction1 = 1.0 / (1.0 - std::pow(options.beta1, static_cast<double>(t)));
  const double correction2 = 1.0 / (1.0 - std::pow(options.beta2, static_cast<double>(t)));
  return {.beta1 = options.beta1,
          .rest1 = 1.0 - options.beta1,
          .root2 = std::sqrt(1.0 - options.beta2),
          .common = {.m_from_m = 0.0f,
                     .m_from_g = 0.0f,
                     .root_from_m = 0.0f,
                     .root_from_g = 0.0f,
                     .beta2 = static_cast<float>(options.beta2),
                     .tan2 = static_cast<float>(correction1 * correction1 / correction2),
                     .v_correction = static_cast<float>(correction2),
                     .lr_correction = static_cast<float>(lr * correction1),
                     .eps = static_cast<float>(options.eps),
                     .lr = static_cast<float>(lr),
                     .decay = static_cast<float>(lr * options.weight_decay)}};
}

void sum_chunks(const CpuStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                const UpdateState& state, VectorView<GroupSums> sums) {
  stream.parallel_for(chunks.size, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const UpdateChunk& chunk = chunks[c];
      if (chunk.slot < 0) continue;
      const auto gradient = state.gradient.slice(chunk.gradient, chunk.size);
      const auto exp_avg = state.exp_avg.slice(chunk.state, chunk.size);
      const GroupSums own = rule == UpdateRule::kMoClip ? moclip_sums(gradient, exp_avg) : adamw_sums(gradient);
      sums[chunk.slot] = chunk.counted ? own : GroupSums{0.0, 0.0, 0.0, own.non_finite};
    }
  });
}

void sum_groups(const CpuStream&, VectorView<const GroupSums> sums, VectorView<const std::int64_t> group_begin,
                const StepSums& step, VectorView<const double> losses, VectorView<double> doubles) {
  const std::int64_t groups = group_begin.size - 1;
  REPRISE_CHECK(doubles.size == groups * kDoublesPerGroup + kDoublesPerStep, "{} doubles for {} groups", doubles.size,
                groups);
  for (std::int64_t g = 0; g < groups; ++g) {
    GroupSums total;
    for (std::int64_t slot = group_begin[g]; slot < group_begin[g + 1]; ++slot) total += sums[slot];
    write_doubles(total, doubles.data + g * kDoublesPerGroup);
  }
  StepSums total = step;
  for (const double loss : losses) total.weighted_loss += loss;
  write_doubles(total, doubles.data + groups * kDoublesPerGroup);
}

void decide_step(const CpuStream&, const StepRule& rule, VectorView<const double> gathered,
                 const StepOutcome& outcome) {
  const std::int64_t groups = outcome.scalars.size, doubles = outcome.totals.size;
  REPRISE_CHECK(doubles == groups * kDoublesPerGroup + kDoublesPerStep && gathered.size % doubles == 0 &&
                    outcome.turns.size == groups && outcome.decision.size == 1,
                "{} gathered doubles, {} totals, {} turns and {} decisions for {} groups", gathered.size, doubles,
                outcome.turns.size, outcome.decision.size, groups);
  std::fill(outcome.totals.begin(), outcome.totals.end(), 0.0);
  for (std::int64_t i = 0; i < gathered.size; ++i) outcome.totals[i % doubles] += gathered[i];
  GroupSums all;
  for (std::int64_t g = 0; g < groups; ++g) all += read_group_sums(outcome.totals.data + g * kDoublesPerGroup);
  const StepDecision decision =
      decide(rule.clip_norm, all, read_step_sums(outcome.totals.data + groups * kDoublesPerGroup));
  for (std::int64_t g = 0; g < groups; ++g) {
    const Turn turn = turn_of(rule, decision, read_group_sums(outcome.totals.data + g * kDoublesPerGroup));
    outcome.turns[g] = turn;
    outcome.scalars[g] = make_update_scalars(rule.terms, decision.scale * turn.gradient, turn.momentum);
  }
  outcome.decision[0] = decision;
}

void update_chunks(const CpuStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                   const UpdateState& state, VectorView<const UpdateScalars> scalars,
                   VectorView<const StepDecision> decision) {
  const bool skipped = decision[0].skipped;
  stream.parallel_for(chunks.size, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const UpdateChunk& chunk = chunks[c];
      if (skipped) {
        std::fill_n(state.gradient.data + chunk.gradient, chunk.size, 0.0f);
      } else {
        update_chunk(rule, chunk, state, scalars[chunk.group]);
      }
    }
  });
}

}  // namespace reprise
