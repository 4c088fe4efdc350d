#include "optimizer/sharded_optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "optimizer/optimizer_options.hpp"

namespace reprise {

StepBuffers::StepBuffers(const Stream& stream, const std::vector<std::int64_t>& begin, int ranks)
    : group_begin(to_device(stream, begin, "the optimizer's groups")),
      chunk_sums(stream, begin.back(), "sums of the optimizer's chunks") {
  const auto groups = static_cast<std::int64_t>(begin.size()) - 1;
  const std::int64_t doubles = groups * kDoublesPerGroup + kDoublesPerStep;
  constexpr const char* kWhat = "scalars of the optimizer";
  own = Buffer<double>(stream, doubles, kWhat);
  gathered = Buffer<double>(stream, doubles * ranks, kWhat);
  totals = Buffer<double>(stream, doubles, kWhat);
  scalars = Buffer<UpdateScalars>(stream, groups, kWhat);
  turns = Buffer<Turn>(stream, groups, kWhat);
  decision = Buffer<StepDecision>(stream, 1, kWhat);
  read_turns = HostBuffer<Turn>(stream, groups, kWhat);
  read_decision = HostBuffer<StepDecision>(stream, 1, kWhat);
  decided = make_stream_event(stream);
}

StepOutcome StepBuffers::outcome() {
  return {totals.view(), scalars.view(), turns.view(), decision.view()};
}

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
      table_(make_update_table(plan_, static_cast<std::int64_t>(groups_.names.size()), releases_gradients(),
                               !std::is_same_v<T, float>)),
      stream_(context.stream),
      exp_avg_(context.stream, plan_.state_size, "exp_avg of the optimizer"),
      exp_avg_sq_(context.stream, plan_.state_size, "exp_avg_sq of the optimizer"),
      chunks_(to_device(context.stream, table_.chunks, "the optimizer's chunks")),
      step_(context.stream, table_.group_begin, context.groups.world->size()) {
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
  reduced_ahead_.resize(parameters.layout().buckets.size());
  find_copies(context);
  copy_to_master(context.stream);
}

template <class T>
UpdateState ShardedOptimizer<T>::state() {
  UpdateState state{.gradient = releases_gradients() ? shard_gradients_.view() : parameters_.gradients(),
                    .exp_avg = exp_avg_.view(),
                    .exp_avg_sq = exp_avg_sq_.view(),
                    .master = {},
                    .parameter = {}};
  if constexpr (std::is_same_v<T, float>) {
    state.master = parameters_.values();
  } else {
    state.master = master_.view();
    state.parameter = parameters_.values();
  }
  return state;
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
  if (last) sum_copies(context);
  if (last || releases_gradients()) {
    for (std::size_t b = 0; b < reduced_ahead_.size(); ++b) {
      REPRISE_CHECK(last || !reduced_ahead_[b], "bucket {} was reduced ahead before the last micro-batch", b);
      if (!reduced_ahead_[b]) reduce_bucket(context, b, last);
    }
  }
  ++micro_batches_;
  reduced_ = last;
}

template <class T>
void ShardedOptimizer<T>::reduce_ahead(const Context& context, std::int64_t bucket) {
  const auto b = static_cast<std::size_t>(bucket);
  REPRISE_CHECK(!reduced_, "reduce_ahead after the step's last micro-batch; call step first");
  REPRISE_CHECK(b < reduced_ahead_.size() && !reduced_ahead_[b] && !parameters_.layout().buckets[b].sum_over_tp,
                "bucket {} of {} cannot be reduced ahead", bucket, reduced_ahead_.size());
  reduce_bucket(context, b, true);
  reduced_ahead_[b] = true;
}

template <class T>
void ShardedOptimizer<T>::find_copies(const Context& context) {
  for (const auto& shared : ownership_.shared) {
    std::vector<CopyRange> ranges;
    std::int64_t packed = 0;
    for (const std::int64_t p : shared.parameters) {
      const ParameterSlot& slot = parameters_.layout().slots[static_cast<std::size_t>(p)];
      for (std::int64_t flat = slot.begin; flat < slot.end; flat += kCopyRangeElements) {
        ranges.push_back({flat, packed, std::min(kCopyRangeElements, slot.end - flat)});
        packed += ranges.back().size;
      }
    }
    Communicator* const group = shared.group == nullptr ? context.groups.tp.get() : shared.group.get();
    copies_.push_back({group, packed, to_device(context.stream, ranges, "places of tensor-parallel copies")});
  }
}

// Copies with partial gradients, packed, so that a step has one all-reduce for each set of ranks that share copies.
template <class T>
void ShardedOptimizer<T>::sum_copies(const Context& context) {
  for (const PackedCopies& copies : copies_) {
    const Arena::Scope scope(context.arena);
    const auto packed = context.arena.vector<float>(copies.size, "gradients of tensor-parallel copies");
    pack_ranges(context.stream, copies.ranges.view(), parameters_.gradients(), packed);
    copies.group->all_reduce(context.stream, packed);
    unpack_ranges(context.stream, copies.ranges.view(), packed, parameters_.gradients());
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
    if (micro_batches_ == 0 || bucket.sum_over_tp) {
      dp.reduce_scatter<float>(context.stream, gradients, sums, counts);
    } else {
      const Arena::Scope scope(context.arena);
      const auto part = context.arena.vector<float>(shard.size(), "gradient shard of a micro-batch");
      dp.reduce_scatter<float>(context.stream, gradients, part, counts);
      add<float, float>(context.stream, part, sums);
    }
    if (context.stream.is_cpu()) {
      parameters_.discard_gradients(bucket.begin, bucket.end);
    } else {
      zero(context.stream, gradients);  // behind the reduction, which may be on another stream than the buffer's
    }
  }
  if (last) {  // right behind the reduction, while the shard is still in the cache
    const Range chunks = plan_.chunks_of_bucket[index];
    sum_chunks(context.stream, rule(), chunks_.view().slice(chunks.begin, chunks.size()), state(),
               step_.chunk_sums.view());
  }
}

// ---- the step ------------------------------------------------------------------------------------------------------

template <class T>
StepResult ShardedOptimizer<T>::update(const Context& context, double lr, const StepSums& sums,
                                       VectorView<const double> device_losses) {
  REPRISE_CHECK(reduced_, "step before reduce_gradients of the last micro-batch");
  require(std::isfinite(lr) && lr >= 0.0, ErrorKind::kUsage, "learning rate {} must be a finite number >= 0", lr);
  launch_update(context, lr, sums, device_losses);
  micro_batches_ = 0;
  reduced_ahead_.assign(reduced_ahead_.size(), false);
  reduced_ = false;
  step_.decided->synchronize();
  const StepDecision& decision = step_.read_decision.view()[0];
  if (!decision.skipped) ++steps_taken_;
  return {.sums = decision.sums,
          .grad_norm = decision.grad_norm,
          .skipped = decision.skipped,
          .angles = angle_statistics(step_.read_turns.view())};
}

template <class T>
void ShardedOptimizer<T>::launch_update(const Context& context, double lr, const StepSums& sums,
                                        VectorView<const double> device_losses) {
  const Stream& stream = context.stream;
  // The step's one collective of scalars.
  sum_groups(stream, step_.chunk_sums.view(), step_.group_begin.view(), sums, device_losses, step_.own.view());
  context.groups.world->all_gather<double>(stream, step_.own.view(), step_.gathered.view());
  const StepRule step_rule{cap_, is_moclip_, options_.clip_norm, make_step_terms(options_, steps_taken_ + 1, lr)};
  decide_step(stream, step_rule, step_.gathered.view(), step_.outcome());
  start_copy_to_host<StepDecision>(stream, step_.decision.view(), step_.read_decision.view());
  start_copy_to_host<Turn>(stream, step_.turns.view(), step_.read_turns.view());
  step_.decided->record(stream);
  update_chunks(stream, rule(), chunks_.view(), state(), step_.scalars.view(), step_.decision.view());
  // The update has cleared what it read; released gradients are zero already.
  if (!releases_gradients()) {
    for (const Range& range : plan_.unswept) {
      fill(stream, parameters_.gradients().slice(range.begin, range.size()), 0.0f);
    }
  }
}

template <class T>
void ShardedOptimizer<T>::gather_parameters(const Context& context, std::int64_t index) {
  if (replicas_ == 1 || replicated()) return;
  const Bucket& bucket = parameters_.layout().buckets.at(static_cast<std::size_t>(index));
  const Range shard = shard_of(bucket, replicas_, replica_);
  context.groups.dp->template all_gather<T>(context.stream, parameters_.values().slice(shard.begin, shard.size()),
                                            parameters_.values().slice(bucket.begin, bucket.end - bucket.begin));
}

template <class T>
void ShardedOptimizer<T>::gather_all_parameters(const Context& context) {
  for (std::int64_t b = 0; b < std::ssize(parameters_.layout().buckets); ++b) gather_parameters(context, b);
}

// ---- master weights and pieces -------------------------------------------------------------------------------------

template <class T>
void ShardedOptimizer<T>::set_master_from_parameters() {
  copy_to_master(stream_);
}

template <class T>
void ShardedOptimizer<T>::copy_to_master(const Stream& stream) {
  if constexpr (!std::is_same_v<T, float>) {
    for (const Segment& segment : plan_.segments) {
      cast<float, T>(stream, parameters_.values().slice(segment.begin, segment.size), master_of(segment));
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
  gather_all_parameters(context);
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
