#include "optimizer/sharded_optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "optimizer/optimizer_options.hpp"
#include "optimizer/update_kernels.hpp"

namespace reprise {

namespace {

constexpr std::size_t kDoublesPerGroup = 4;
constexpr std::size_t kDoublesPerStep = 8;
static_assert(sizeof(GroupSums) == kDoublesPerGroup * sizeof(double));
static_assert(sizeof(StepSums) == kDoublesPerStep * sizeof(double));

// Above it a square of a coordinate of s G could leave float32, and the second moment with it.
constexpr double kLargestScaledNorm = 1e18;
constexpr double kLargestScale = 1e30;  // so that s itself stays in float32

// `groups` and then `sums` as doubles in order, and back.
std::vector<double> pack(const std::vector<GroupSums>& groups, const StepSums& sums) {
  std::vector<double> doubles;
  for (const GroupSums& g : groups) {
    for (const double value : {g.g_dot_m, g.g_dot_g, g.m_dot_m, g.non_finite}) doubles.push_back(value);
  }
  for (const double value : {sums.weight, sums.weighted_loss, sums.tokens, sums.stop, sums.probe_mass,
                             sums.probe_tokens, sums.error, sums.reserved}) {
    doubles.push_back(value);
  }
  return doubles;
}

void unpack(const std::vector<double>& doubles, std::vector<GroupSums>& groups, StepSums& sums) {
  const double* d = doubles.data();
  for (GroupSums& g : groups) {
    g = {d[0], d[1], d[2], d[3]};
    d += kDoublesPerGroup;
  }
  sums = {d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]};
}

void add(GroupSums& total, const GroupSums& part) {
  total.g_dot_m += part.g_dot_m;
  total.g_dot_g += part.g_dot_g;
  total.m_dot_m += part.m_dot_m;
  total.non_finite += part.non_finite;
}

}  // namespace

template <class T>
ShardedOptimizer<T>::ShardedOptimizer(const Context& context, const OptimizerOptions& options,
                                      ParameterSet<T>& parameters)
    : options_(options),
      parameters_(parameters),
      replicas_(context.groups.dp_size()),
      replica_(context.groups.dp_rank()),
      is_moclip_(options.name == "moclip"),
      cap_(options.max_angle, options.obtuse),
      groups_(make_angle_groups(parameters.specs(), options.angle_scope)),
      ownership_(make_ownership(context, parameters.specs(), parameters.layout())),
      plan_(make_shard_plan(parameters.specs(), parameters.layout(), groups_.of_parameter, replicas_, replica_,
                            options.zero_stage == 0)),
      exp_avg_(context.stream, plan_.state_size, "exp_avg of the optimizer"),
      exp_avg_sq_(context.stream, plan_.state_size, "exp_avg_sq of the optimizer"),
      chunk_sums_(plan_.chunks.size()) {
  const std::int64_t size = parameters.layout().size;
  REPRISE_CHECK(parameters.values().size == size && parameters.gradients().size == size,
                "parameters hold {} values and {} gradients where the layout has {}", parameters.values().size,
                parameters.gradients().size, size);
  if constexpr (!std::is_same_v<T, float>) {
    master_ = Buffer<float>(context.stream, plan_.state_size, "master weights of the optimizer");
  }
  if (releases_gradients()) {
    shard_gradients_ = Buffer<float>(context.stream, plan_.state_size, "gradient shard of the optimizer");
  }
  gathered_.resize((kDoublesPerGroup * groups_.names.size() + kDoublesPerStep) *
                   static_cast<std::size_t>(context.groups.world->size()));
  set_master_from_parameters();
}

template <class T>
VectorView<float> ShardedOptimizer<T>::gradient_of(const Segment& segment) {
  return releases_gradients() ? shard_gradients_.view().slice(segment.state, segment.size)
                              : parameters_.gradients().slice(segment.begin, segment.size);
}

template <class T>
VectorView<float> ShardedOptimizer<T>::master_of(const Segment& segment) {
  if constexpr (std::is_same_v<T, float>) {
    return parameters_.values().slice(segment.begin, segment.size);
  } else {
    return master_.view().slice(segment.state, segment.size);
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------------

template <class T>
void ShardedOptimizer<T>::reduce_gradients(const Context& context, bool last) {
  REPRISE_CHECK(!reduced_, "reduce_gradients after the step's last micro-batch; call step first");
  ++micro_batches_;
  if (last) sum_copies(context);
  if (last || releases_gradients()) {
    for (std::size_t b = 0; b < parameters_.layout().buckets.size(); ++b) reduce_bucket(context, b, last);
  }
  reduced_ = last;
}

// Copies with partial gradients, packed, so that a step has one all-reduce for each set of ranks that share copies.
template <class T>
void ShardedOptimizer<T>::sum_copies(const Context& context) {
  for (const auto& shared : ownership_.shared) {
    std::int64_t size = 0;
    for (const std::int64_t p : shared.parameters) size += parameters_.spec(p).size();
    const Arena::Scope scope(context.arena);
    const auto packed = context.arena.vector<float>(size, "gradients of tensor-parallel copies");
    std::int64_t offset = 0;
    for (const std::int64_t p : shared.parameters) {
      const auto gradient = parameters_.gradient(p).flat();
      std::copy_n(gradient.data, gradient.size, packed.data + offset);
      offset += gradient.size;
    }
    Communicator& group = shared.group == nullptr ? *context.groups.tp : *shared.group;
    group.all_reduce(context.stream, packed);
    offset = 0;
    for (const std::int64_t p : shared.parameters) {
      const auto gradient = parameters_.gradient(p).flat();
      std::copy_n(packed.data + offset, gradient.size, gradient.data);
      offset += gradient.size;
    }
  }
}

template <class T>
void ShardedOptimizer<T>::reduce_bucket(const Context& context, std::size_t index, bool last) {
  const Bucket& bucket = parameters_.layout().buckets[index];
  const VectorView<float> gradients = parameters_.gradients().slice(bucket.begin, bucket.end - bucket.begin);
  const Range shard = shard_of(bucket, replicas_, replica_);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(replicas_), shard.size());
  Communicator& dp = *context.groups.dp;
  if (replicas_ > 1 && replicated()) {
    dp.all_reduce(context.stream, gradients);
  } else if (replicas_ > 1 && !releases_gradients()) {
    dp.reduce_scatter<float>(context.stream, gradients, parameters_.gradients().slice(shard.begin, shard.size()),
                             counts);
  } else if (replicas_ > 1 && (last || !bucket.sum_over_tp)) {  // copies wait for their sum over tp
    const auto sums = shard_gradients_.view().slice(plan_.state_of_bucket[index], shard.size());
    if (micro_batches_ == 1 || bucket.sum_over_tp) {
      dp.reduce_scatter<float>(context.stream, gradients, sums, counts);
    } else {
      const Arena::Scope scope(context.arena);
      const auto part = context.arena.vector<float>(shard.size(), "gradient shard of a micro-batch");
      dp.reduce_scatter<float>(context.stream, gradients, part, counts);
      add<float, float>(context.stream, part, sums);
    }
    parameters_.discard_gradients(bucket.begin, bucket.end);
  }
  if (last) sum_bucket(context, index);
}

// Right behind the bucket's reduction, while its shard is still in the cache.
template <class T>
void ShardedOptimizer<T>::sum_bucket(const Context& context, std::size_t bucket) {
  const Range range = plan_.chunks_of_bucket[bucket];
  context.stream.cpu().parallel_for(range.size(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = range.begin + begin; c < range.begin + end; ++c) {
      const Chunk& chunk = plan_.chunks[static_cast<std::size_t>(c)];
      const Segment& segment = plan_.segments[static_cast<std::size_t>(chunk.segment)];
      if (!segment.in_shard) continue;
      const auto gradient = gradient_of(segment).slice(chunk.offset, chunk.size);
      const auto exp_avg = exp_avg_.view().slice(segment.state + chunk.offset, chunk.size);
      chunk_sums_[static_cast<std::size_t>(c)] = is_moclip_ ? moclip_sums(gradient, exp_avg) : adamw_sums(gradient);
    }
  });
}

// ---- the step ------------------------------------------------------------------------------------------------------

template <class T>
StepResult ShardedOptimizer<T>::step(const Context& context, double lr, const StepSums& sums) {
  REPRISE_CHECK(reduced_, "step before reduce_gradients of the last micro-batch");
  require(std::isfinite(lr) && lr >= 0.0, ErrorKind::kUsage, "learning rate {} must be a finite number >= 0", lr);
  StepResult result;
  result.sums = sums;
  const std::vector<GroupSums> groups = exchange_sums(context, result.sums);
  const double scale = decide(groups, result);
  const auto scalars = scalars_of_groups(groups, lr, scale, result.angles);
  if (!result.skipped) {
    update(context, scalars);
    ++steps_taken_;
    if (!replicated()) gather_parameters(context);
  }
  clear_gradients(context, result.skipped);
  micro_batches_ = 0;
  reduced_ = false;
  return result;
}

// The step's one collective of scalars. Every rank adds the same numbers in the same order, so all decide alike.
template <class T>
std::vector<GroupSums> ShardedOptimizer<T>::exchange_sums(const Context& context, StepSums& sums) {
  std::vector<GroupSums> groups(groups_.names.size());
  for (std::size_t c = 0; c < plan_.chunks.size(); ++c) {
    const Segment& segment = plan_.segments[static_cast<std::size_t>(plan_.chunks[c].segment)];
    GroupSums& group = groups[static_cast<std::size_t>(segment.group)];
    if (segment.owned) {
      add(group, chunk_sums_[c]);
    } else if (segment.in_shard) {  // a copy that another rank counts: only its soundness matters
      group.non_finite += chunk_sums_[c].non_finite;
    }
  }
  const std::vector<double> mine = pack(groups, sums);
  context.groups.world->all_gather<double>(context.stream, mine, VectorView<double>(gathered_));
  std::vector<double> total(mine.size(), 0.0);
  for (std::size_t i = 0; i < gathered_.size(); ++i) total[i % total.size()] += gathered_[i];
  unpack(total, groups, sums);
  return groups;
}

template <class T>
double ShardedOptimizer<T>::decide(const std::vector<GroupSums>& groups, StepResult& result) const {
  double squares = 0.0, non_finite = 0.0;
  for (const GroupSums& group : groups) {
    squares += group.g_dot_g;
    non_finite += group.non_finite;
  }
  const double norm = std::sqrt(squares), weight = result.sums.weight;
  const double limit = options_.clip_norm * weight;
  const double scale = (options_.clip_norm > 0.0 && norm > limit ? limit / norm : 1.0) / weight;
  result.grad_norm = weight > 0.0 ? norm / weight : 0.0;
  const bool sound = weight > 0.0 && std::isfinite(weight) && std::isfinite(result.sums.weighted_loss) &&
                     !(result.sums.error > 0.0) && non_finite == 0.0 && scale <= kLargestScale &&
                     scale * norm <= kLargestScaledNorm;
  result.skipped = !sound;
  return sound ? scale : 0.0;
}

template <class T>
std::vector<UpdateScalars> ShardedOptimizer<T>::scalars_of_groups(const std::vector<GroupSums>& groups, double lr,
                                                                  double scale, AngleStatistics& statistics) const {
  std::vector<Turn> turns(groups.size());
  if (is_moclip_ && scale > 0.0) {
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const GroupSums& sums = groups[g];
      turns[g] = cap_.turn({scale * sums.g_dot_m, scale * scale * sums.g_dot_g, sums.m_dot_m, 0.0});
    }
    statistics = angle_statistics(turns);
  }
  std::vector<UpdateScalars> scalars;
  for (const Turn& turn : turns) {
    scalars.push_back(make_update_scalars(options_, steps_taken_ + 1, lr, scale * turn.gradient, turn.momentum));
  }
  return scalars;
}

template <class T>
void ShardedOptimizer<T>::update(const Context& context, const std::vector<UpdateScalars>& scalars) {
  const auto chunks = static_cast<std::int64_t>(plan_.chunks.size());
  context.stream.cpu().parallel_for(chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = plan_.chunks[static_cast<std::size_t>(c)];
      const Segment& segment = plan_.segments[static_cast<std::size_t>(chunk.segment)];
      UpdateScalars own = scalars[static_cast<std::size_t>(segment.group)];
      if (!segment.decay) own.decay = 0.0f;
      const std::int64_t state = segment.state + chunk.offset;
      VectorView<BFloat16> parameter;
      if constexpr (std::is_same_v<T, BFloat16>) {
        parameter = parameters_.values().slice(segment.begin + chunk.offset, chunk.size);
      }
      const auto apply = is_moclip_ ? moclip_update : adamw_update;
      apply(own, gradient_of(segment).slice(chunk.offset, chunk.size), exp_avg_.view().slice(state, chunk.size),
            exp_avg_sq_.view().slice(state, chunk.size), master_of(segment).slice(chunk.offset, chunk.size), parameter);
    }
  });
}

// The update has cleared what it read; released gradients are zero already, and their shard is overwritten next time.
template <class T>
void ShardedOptimizer<T>::clear_gradients(const Context& context, bool all) {
  if (releases_gradients()) return;
  const VectorView<float> gradients = parameters_.gradients();
  if (all) {
    fill(context.stream, gradients, 0.0f);
  } else {
    for (const Range& range : plan_.unswept) fill(context.stream, gradients.slice(range.begin, range.size()), 0.0f);
  }
}

template <class T>
void ShardedOptimizer<T>::gather_parameters(const Context& context) {
  if (replicas_ == 1) return;
  for (const Bucket& bucket : parameters_.layout().buckets) {
    const Range shard = shard_of(bucket, replicas_, replica_);
    context.groups.dp->template all_gather<T>(context.stream, parameters_.values().slice(shard.begin, shard.size()),
                                              parameters_.values().slice(bucket.begin, bucket.end - bucket.begin));
  }
}

// ---- master weights and pieces -------------------------------------------------------------------------------------

template <class T>
void ShardedOptimizer<T>::set_master_from_parameters() {
  if constexpr (!std::is_same_v<T, float>) {
    const CpuStream serial;
    for (const Segment& segment : plan_.segments) {
      cast<float, T>(serial, parameters_.values().slice(segment.begin, segment.size), master_of(segment));
    }
  }
}

template <class T>
void ShardedOptimizer<T>::publish_parameters(const Context& context) {
  if constexpr (!std::is_same_v<T, float>) {
    for (const Segment& segment : plan_.segments) {
      cast<T, float>(context.stream, master_of(segment), parameters_.values().slice(segment.begin, segment.size));
    }
  }
  if (!replicated()) gather_parameters(context);
}

template <class T>
OwnedPiece ShardedOptimizer<T>::piece_of(const Segment& segment) {
  return {.parameter = segment.parameter,
          .local = {segment.local, segment.local + segment.size},
          .master = master_of(segment),
          .exp_avg = exp_avg_.view().slice(segment.state, segment.size),
          .exp_avg_sq = exp_avg_sq_.view().slice(segment.state, segment.size)};
}

template <class T>
std::vector<OwnedPiece> ShardedOptimizer<T>::owned_pieces() {
  std::vector<OwnedPiece> pieces;
  for (const Segment& segment : plan_.segments) {
    if (segment.owned) pieces.push_back(piece_of(segment));
  }
  return pieces;
}

template <class T>
std::vector<OwnedPiece> ShardedOptimizer<T>::held_pieces() {
  std::vector<OwnedPiece> pieces;
  for (const Segment& segment : plan_.segments) pieces.push_back(piece_of(segment));
  return pieces;
}

template <class T>
void ShardedOptimizer<T>::set_steps_taken(std::int64_t steps) {
  REPRISE_CHECK(steps >= 0, "{} steps taken", steps);
  steps_taken_ = steps;
}

template <class T>
std::int64_t ShardedOptimizer<T>::state_bytes() const {
  return exp_avg_.bytes() + exp_avg_sq_.bytes() + master_.bytes() + shard_gradients_.bytes();
}

template <class T>
std::unique_ptr<Optimizer<T>> make_optimizer(const Context& context, const OptimizerOptions& options,
                                             ParameterSet<T>& parameters) {
  check_options(options);
  return std::make_unique<ShardedOptimizer<T>>(context, options, parameters);
}

template std::unique_ptr<Optimizer<float>> make_optimizer(const Context&, const OptimizerOptions&,
                                                          ParameterSet<float>&);
template std::unique_ptr<Optimizer<BFloat16>> make_optimizer(const Context&, const OptimizerOptions&,
                                                             ParameterSet<BFloat16>&);

}  // namespace reprise
